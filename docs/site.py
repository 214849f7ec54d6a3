"""Pages of the site that are drawn from elsewhere: the overview is the README, the parts are the catalog's."""

import inspect
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lossworks import testing
from lossworks.catalog import papers, parts
from lossworks.roles import Loss


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    readme = (Path(config.config_file_path).parent / "README.md").read_text(encoding="utf-8")
    overview = readme.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
    contributing = (Path(config.config_file_path).parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, text in (
        ("index.md", overview),
        ("contributing.md", contributing),
        ("parts.md", _parts()),
        ("contract.md", _contract()),
    ):
        files.append(File.generated(config, name, content=text))
    return files


def _contract() -> str:
    """What `check_loss` runs on each loss of the catalog, and why an assertion does not apply."""
    assertions = [name for name in testing.losses.__all__ if name.startswith("assert_")]
    lines = [
        "# The contract, part by part",
        f"`lossworks.testing.check_loss` holds {len(assertions)} assertions; the suite runs them on every loss, in "
        f"every setting that it declares: {', '.join(f'`{name}`' for name in assertions)}.",
        "\n".join(
            ["| loss | settings | run | does not apply |", "|---|---|---|---|", *_contract_rows(len(assertions))]
        ),
    ]
    return "\n\n".join(lines)


def _contract_rows(assertions: int) -> list[str]:
    rows = []
    for name, entry in parts().items():
        if inspect.isclass(entry.part) and issubclass(entry.part, Loss):
            loss = testing.build(entry.part)
            reasons = {check: reason(loss) for check, reason in testing.unless.items() if reason(loss)}
            why = "; ".join(f"`{check}`: {reason}" for check, reason in reasons.items())
            rows.append(f"| `{name}` | {len(entry.part.settings)} | {assertions - len(reasons)} | {why} |")
    return rows


def _parts() -> str:
    pages = [
        "# Parts",
        "Collected from the code. `lossworks find` and `lossworks show` say the same on the command line.",
    ]
    for role in dict.fromkeys(entry.role for entry in parts().values()):
        pages.append(f"## {role.capitalize()}")
        for entry in parts().values():
            if entry.role == role:
                pages += [
                    f"### {entry.name}",
                    f"`{entry.path}`. Helps with: {', '.join(entry.helps) or 'nothing named'}.",
                    "",
                ]
                pages.append(f"```text\n{inspect.getdoc(entry.part)}\n```")
                pages += [f"- {papers()[key].cite()}" for key in entry.papers]
    return "\n\n".join(pages)
