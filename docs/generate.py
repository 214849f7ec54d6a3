"""Writes the generated pages of the site: one file for each part, the indexes, the reference, and the start page.

The build of the site calls it; ``python docs/generate.py`` writes the pages alone. None of them is kept in git.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from torch import nn

import lossworks
from lossworks.catalog import HELPS, Entry, papers, parts
from lossworks.catalog import Paper as PaperEntry
from lossworks.roles import Loss, Part
from lossworks.testing.page import ContractRow, contract_rows, exactness_row

__all__ = ["example_arguments", "pages", "write"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = (
    "lossworks",
    "lossworks.roles",
    "lossworks.objective",
    "lossworks.comparison",
    "lossworks.verdict",
    "lossworks.metrics",
    "lossworks.certify",
    "lossworks.diagnose",
    "lossworks.federated",
    "lossworks.perturb",
    "lossworks.catalog",
    "lossworks.testing",
    "lossworks.distributed",
    "lossworks.sklearn",
    "lossworks.integrations.accelerate",
    "lossworks.integrations.lightning",
    "lossworks.integrations.transformers",
)
"""The modules whose public names the reference lists, except for the parts."""

USED_WITH: dict[str, str] = {
    "loss": "Stands where a torch loss stood, `{call}(output, target)`, and in the formula as "
    "`lossworks.Objective(loss={call})`, with any {weights}, {perturb} and {penalties}.",
    "embedding loss": "Takes embeddings in place of logits: add it to the objective's value in your own loop.",
    "distillation loss": "Takes a student's and a teacher's outputs: add it to the objective's value in your loop.",
    "weighting": "Stands in `lossworks.Objective(loss, weights={call})` beside any {losses} with one value a row, or "
    "is called on such values by itself.",
    "perturbation": "Stands in `lossworks.Objective(loss, perturb={call})` beside any {losses} with one value a row, "
    "or is called by itself with a risk.",
    "penalty": "Stands in `lossworks.Objective(loss, penalties=[{call}])`, or is added to a loss by hand: it reads the "
    "model alone.",
    "objective": "Is called in place of a loss, on `(model, x, target)`, as every `lossworks.Objective` is.",
    "optimizer": "Wraps any torch optimizer, and goes with every {losses}, {weights} and {penalties}.",
    "layer": "Stands in the model, under any objective.",
    "calibrator": "Is fitted after training, on rows that were not trained on, to the outputs of any classifier.",
    "selector": "Says which rows to train on; what it gives are indices, or the `sample_weight` of any {losses}.",
    "certificate": "Reads a trained model, or is trained for: it goes with any model of the layers that it names.",
    "diagnostic": "Reads a model, before or after training, and changes nothing.",
    "federated round": "Stands in a round over clients, each of which trains by any objective.",
    "fused form": "Takes the last layer's inputs and weight in place of logits, with any {losses} that reads each row "
    "alone.",
    "metric": "Is computed from outputs and targets, after training.",
    "verdict": "Reads tables of scores, whatever gave them.",
}
"""For each role, the sentence that says how its parts are used and with which others."""

FOLDER_WORDS = {
    "losses": ("loss", "loss"),
    "weights": ("weighting", "weighting"),
    "perturb": ("perturbation", "perturbation"),
    "penalties": ("penalty", "penalty"),
}


def slug(text: str) -> str:
    """The name of a role's page, or of a heading in a link."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")


def pages() -> dict[str, str]:
    """Every generated page by its path below ``docs/``, as MyST Markdown."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    made = {
        "index.md": _from_root(readme) + _navigation(),
        "contributing.md": _from_root(contributing),
        "contract.md": _contract_page(),
        "parts/index.md": _by_role(),
        "parts/troubles.md": _by_trouble(),
        "parts/papers.md": _by_paper(),
        "reference/index.md": _reference_index(),
    }
    made |= {f"parts/roles/{slug(role)}.md": _role_page(role) for role in _roles()}
    made |= {f"parts/{entry.name}.md": part_page(entry) for entry in parts().values()}
    return made | {f"reference/{module}.md": _reference(module) for module in REFERENCE}


def write(docs: Path = DOCS) -> None:
    """Write the pages and the pictures, and remove those of parts that are gone."""
    from pictures import draw

    made = pages()
    for entry in parts().values():
        picture = draw(entry)
        if picture is not None:
            made[f"parts/pictures/{entry.name}.svg"] = picture
    for path, text in made.items():
        place = docs / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")
    for folder in ("parts", "reference"):
        for place in (docs / folder).rglob("*.*"):
            if place.relative_to(docs).as_posix() not in made:
                place.unlink()


def _from_root(text: str) -> str:
    """A page of the repository's root, with its links rewritten for ``docs/``."""
    text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
    return re.sub(r"`(examples/(\w+)\.py)`", r"[`\1`](examples/\2.rst)", text)


def _navigation() -> str:
    trees = {
        "Use it": ["integrations", "examples/index"],
        "Parts": ["parts/index", "parts/troubles", "parts/papers", "reference/index"],
        "Trust it": ["contract", "exactness", "claims", "benchmarks", "scaling", "fuzzing", "mutation", "errata"],
        "The project": ["contributing", "moved"],
    }
    named = {"index", *(name for names in trees.values() for name in names)}
    trees["The project"] += sorted({place.stem for place in DOCS.glob("*.md")} - named)
    return "".join(f"\n{_toctree(names, f':caption: {caption}')}" for caption, names in trees.items())


def _toctree(names: Iterable[str], *options: str) -> str:
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *names, "```", ""])


# one part


def part_page(entry: Entry) -> str:
    """The page of one part."""
    directive = "autoclass" if inspect.isclass(entry.part) else "autofunction"
    members = ["   :members:"] if inspect.isclass(entry.part) else []
    sections = [
        f"# {entry.name}",
        _facts(entry),
        "\n".join(["```{eval-rst}", f".. {directive}:: {entry.path}", *members, "```"]),
        f"## What it is used with\n\n{_used_with(entry)}",
        _claims(entry),
        _exactness(entry),
        _contract(entry),
        _errata(entry),
        _papers(entry),
        _beside(entry),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts(entry: Entry) -> str:
    helps = ", ".join(f"[{term}](troubles.md#{slug(term)})" for term in entry.helps)
    said = (
        f"A [{entry.role}](roles/{slug(entry.role)}.md)"
        if entry.role[0] not in "aeiou"
        else (f"An [{entry.role}](roles/{slug(entry.role)}.md)")
    )
    return f"{said}{f' that helps with {helps}' if helps else ''}."


def _used_with(entry: Entry) -> str:
    if not inspect.isclass(entry.part):
        return _function_of(entry)
    links = {folder: f"[{word}](roles/{slug(role)}.md)" for folder, (word, role) in FOLDER_WORDS.items()}
    needed = ", ".join(f"{name}=..." for name in getattr(entry.part, "needs", ()))
    said = [USED_WITH[entry.role].format(call=f"{entry.name}({needed})", **links)]
    part = entry.part
    if issubclass(part, Part):
        if needed:
            said.append(f"`{needed}` comes from the training data: `lossworks.compare` fills it in.")
        if part.needs_index:
            said.append("It remembers something of each training row, so give it the rows' numbers as `index=`.")
        if part.couples_batch:
            said.append("It reads the batch as one piece: `lossworks.Objective` sees to it where a batch is split.")
    if issubclass(part, Loss):
        if part.rowwise:
            said.append("Its rows stand alone, so [linear_loss](linear_loss.md) has it without the matrix of logits.")
        if part.soft_targets:
            said.append("It takes class probabilities as targets too.")
    return " ".join(said)


def _function_of(entry: Entry) -> str:
    """Say with which classes a function shares a paper."""
    classes = [
        f"[{other.name}]({other.name}.md)"
        for other in parts().values()
        if inspect.isclass(other.part) and set(other.papers) & set(entry.papers)
    ]
    said = "A function, to be called by itself"
    return (
        f"{said}; of the same paper {'are' if len(classes) > 1 else 'is'} {', '.join(classes)}."
        if classes
        else f"{said}."
    )


@cache
def _results() -> dict[str, dict[str, object]]:
    kept = Path(lossworks.__file__).parent / "catalog" / "claims.json"
    return json.loads(kept.read_text(encoding="utf-8"))


def _claims(entry: Entry) -> str:
    rows = []
    for key in entry.papers:
        if key in _results():
            result = _results()[key]
            shown = "shown" if result["shown"] else "not shown"
            rows.append(
                f"| [{key}](../claims.md#{key}) | {_cell(result['claimed'])} | {_cell(result['measured'])} | {shown} |"
            )
        elif papers()[key].claim:
            rows.append(f"| {key} | {_cell(papers()[key].claim)} | not measured here | |")
    if not rows:
        return ""
    head = [
        "## Claimed and measured",
        "",
        "{.wide}",
        "| paper | claimed | measured in small | direction |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


@cache
def _rows(name: str) -> tuple[ContractRow, ...]:
    return tuple(contract_rows(name))


def _left_out(rows: Iterable[ContractRow], settings: int) -> list[str]:
    """The checks that do not apply in some settings, each with the reason."""
    return [
        f"`{row.check}`{f' (runs in {row.settings} of {settings})' if row.settings else ''}: {plain(row.reason)}"
        for row in rows
        if row.reason
    ]


def _contract(entry: Entry) -> str:
    """The section on the contract: how many checks the part passes, and why others do not apply."""
    rows = _rows(entry.name)
    settings = max(row.settings for row in rows)
    run = sum(row.settings > 0 for row in rows)
    times = f", each in its {settings} settings" if settings > 1 else ""
    said = f"It is held to {run} checks of [the contract](../contract.md){times}"
    reasons = [f"- {left}" for left in _left_out(rows, settings)]
    return "\n".join(["## Contract", "", f"{said}{', but for these:' if reasons else '.'}", "", *reasons]).rstrip()


def _exactness(entry: Entry) -> str:
    """The section on exactness: for which ways of splitting the work the part gives the same numbers."""
    row = exactness_row(entry.name)
    if row is None:
        return ""
    notes = list(dict.fromkeys(cell.note for cell in row.cells.values() if cell.note))
    head = "## Exactness\n\nThe same numbers however the [work is split](../exactness.md).\n"
    cells = [
        "exact" * cell.exact + (f" [{notes.index(cell.note) + 1}]" if cell.note else "") for cell in row.cells.values()
    ]
    table = [f"| {' | '.join(row.cells)} |", "|---" * len(cells) + "|", f"| {' | '.join(cells)} |", ""]
    told = [f"{number}. {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, start=1)]
    return "\n".join([head, *table, *told]).rstrip()


def _errata(entry: Entry) -> str:
    text = (DOCS / "errata.md").read_text(encoding="utf-8")
    named = [
        entry_text
        for entry_text in text.split("\n\n")
        if entry_text.startswith("**") and f"`{entry.name}`" in entry_text
    ]
    told = "\n\n".join(re.sub(r"\]\((\w+\.md)", r"](../\1", paragraph) for paragraph in named)
    return f"## Errata\n\nWhere published code is wrong, or unlike its paper or this part.\n\n{told}" if named else ""


def _papers(entry: Entry) -> str:
    lines = [f"- {cited(papers()[key])}" for key in entry.papers]
    return "\n".join(["## Papers", "", *lines]) if lines else ""


def cited(paper: PaperEntry) -> str:
    """The citation of a paper, whose title links to the paper."""
    names = ", ".join(paper.authors[:3]) + (" and others" if len(paper.authors) > 3 else "")
    link = (
        f"https://arxiv.org/abs/{paper.arxiv}"
        if paper.arxiv
        else f"https://doi.org/{paper.doi}"
        if paper.doi
        else paper.url
    )
    title = f"[{paper.title}]({link})" if link else f"*{paper.title}*"
    where = f" {paper.venue}." if paper.venue else ""
    return f"{names} ({paper.year}). {title}.{where}" + (f" {paper.note}" if paper.note else "")


def _beside(entry: Entry) -> str:
    """The section of parts that have the same role and help with the same troubles."""
    others = [
        other
        for other in parts().values()
        if other.name != entry.name and other.role == entry.role and set(other.helps) & set(entry.helps)
    ]
    if not others:
        return ""
    best = sorted(others, key=lambda other: (-len(set(other.helps) & set(entry.helps)), other.name))[:6]
    return "\n".join(["## See also", "", *_listed(best, ".")])


def _listed(entries: Iterable[Entry], folder: str) -> list[str]:
    prefix = "" if folder == "." else f"{folder}/"
    return [f"- [{entry.name}]({prefix}{entry.name}.md): {plain(entry.summary)}" for entry in entries]


def plain(text: str) -> str:
    """Convert a line of a docstring to Markdown."""
    text = re.sub(r":(?!math)\w+:`~?\.?([^`]*)`", r"`\1`", text).replace("``", "`").replace(":math:`", "{math}`")
    return re.sub(r"(?<!`)([*_<])(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", text)


# indexes


@cache
def _roles() -> tuple[str, ...]:
    return tuple(dict.fromkeys(lossworks.catalog.ROLES[folder] for folder in lossworks.catalog.ROLES))


def _of_role(role: str) -> list[Entry]:
    return [entry for entry in parts().values() if entry.role == role]


def _by_role() -> str:
    lines = ["# Parts by role", "", f"{len(parts())} parts, each under the role that it plays in the formula."]
    lines.append("The same parts stand [by trouble](troubles.md) and [by paper](papers.md).")
    for role in _roles():
        if _of_role(role):
            lines += ["", f"## {role.capitalize()}", "", *_listed(_of_role(role), ".")]
    return "\n".join([*lines, "", _toctree((f"roles/{slug(role)}" for role in _roles()), ":maxdepth: 1")])


def _role_page(role: str) -> str:
    lines = [f"# {role.capitalize()}", "", *_listed(_of_role(role), "..")]
    return "\n".join([*lines, "", _toctree(f"../{entry.name}" for entry in _of_role(role))])


def _by_trouble() -> str:
    lines = [
        "# Parts by trouble",
        "",
        "What a part helps with. `lossworks find` answers the same in words of your own.",
    ]
    for term in HELPS:
        entries = [entry for entry in parts().values() if term in entry.helps]
        if entries:
            lines += ["", f"## {term[0].upper()}{term[1:]}", "", *_listed(entries, ".")]
    return "\n".join([*lines, ""])


def _by_paper() -> str:
    lines = ["# Parts by paper", "", "Where each method comes from, the newest first."]
    for key, paper in sorted(papers().items(), key=lambda row: (-row[1].year, row[0])):
        entries = [entry for entry in parts().values() if key in entry.papers]
        if entries:
            names = ", ".join(f"[{entry.name}]({entry.name}.md)" for entry in entries)
            lines += ["", f"## {key}", "", cited(paper), "", f"Parts: {names}."]
    return "\n".join([*lines, ""])


def _contract_page() -> str:
    """The page of the contract: the checks of each role, and how many of them apply to each part."""
    lines = ["# The contract, part by part", ""]
    lines.append("What every part keeps. `lossworks.testing.check_part` holds a part of your own to it, of any role.")
    for role in _roles():
        rows = {entry.name: _rows(entry.name) for entry in _of_role(role)}
        checks = {row.check: row.says for some in rows.values() for row in some}
        lines += [
            "",
            f"## {role.capitalize()}",
            "",
            "| part | settings | checks | does not apply |",
            "|---|---|---|---|",
        ]
        for name, some in rows.items():
            run, settings = sum(row.settings > 0 for row in some), max(row.settings for row in some)
            less = _cell("; ".join(_left_out(some, settings)))
            lines.append(f"| [{name}](parts/{name}.md) | {settings} | {run} | {less} |")
        lines += ["", "The checks:", "", *(f"- `{check}`: {plain(says)}" for check, says in checks.items())]
    return "\n".join([*lines, ""])


# reference


def _reference_index() -> str:
    lines = ["# Reference", "", "What is public besides the parts.", ""]
    lines += [
        f"- [`{module}`]({module}.md): {plain(_first_line(importlib.import_module(module)))}" for module in REFERENCE
    ]
    return "\n".join([*lines, "", _toctree(REFERENCE)])


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n", 1)[0]


def _reference(name: str) -> str:
    module = importlib.import_module(name)
    directives: list[str] = []
    for public in module.__all__:
        documented = getattr(module, public)
        if inspect.isclass(documented) and not _elsewhere(name, public, documented):
            inherited = ["   :inherited-members: Module"] if issubclass(documented, nn.Module) else []
            directives += [f".. autoclass:: {name}.{public}", "   :members:", *inherited, ""]
        elif inspect.isroutine(documented) and not _elsewhere(name, public, documented):
            directives += [f".. autofunction:: {name}.{public}", ""]
    head = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:", ""]
    return "\n".join([*head, *directives, "```", ""])


def _elsewhere(module: str, public: str, documented: object) -> bool:
    """Whether a name has a page elsewhere, because it is a part or an earlier module of the reference lists it."""
    if public in parts():
        return True
    above = REFERENCE[: REFERENCE.index(module)]
    return any(getattr(importlib.import_module(other), public, None) is documented for other in above)


def example_arguments(gallery: object, script: str) -> list[str]:
    """The arguments with which the gallery runs an example: a small run, so that the build is fast."""
    return ["--repeats", "3", "--steps", "300"]


if __name__ == "__main__":
    write()
