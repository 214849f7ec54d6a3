"""Run the papers' claims: ``python -m claims run|table|document|list``, called in the top folder of the source tree."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

import claims
from claims import ldr_table
from claims.document import markdown
from lossworks.checks import InputError
from lossworks.runs.files import whole

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
INTERRUPTED = 130
Results = Annotated[
    Path | None, typer.Option(help="The file that keeps the results; the source tree's own by default.")
]


@app.command()
def run(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys of papers; all of them by default.")] = None,
    results: Results = None,
) -> None:
    """Measure claims, print what is claimed beside what was measured, and keep the results."""
    table = Table("paper", "claimed", "measured", "shown", "seconds", show_lines=True)
    for record in claims.run(keys or None, results):
        table.add_row(
            record["paper"],
            Text(record["claimed"]),
            Text(record["measured"]),
            "[green]yes[/green]" if record["shown"] else "[yellow]no[/yellow]",
            f"{record['seconds']:.0f}",
        )
    _screen().print(table)


@app.command()
def table(results: Results = None) -> None:
    """Measure the LDR paper's table in small, which takes minutes, print the ranks, and keep it."""
    measured = ldr_table.run(results)
    ranks = Table("loss", "mean rank", "worst rank")
    for name, rank in measured["mean_rank"].items():
        ranks.add_row(name, f"{rank:.2f}", f"{measured['worst_rank'][name]:g}")
    _screen().print(ranks)
    _screen().print(f"{measured['rule']} [bold]{'Shown' if measured['shown'] else 'Not shown'}[/bold].")


@app.command()
def document(
    out: Annotated[Path | None, typer.Option(help="A Markdown file; the screen by default.")] = None,
) -> None:
    """Write the page of all claims from the kept results."""
    if out is None:
        sys.stdout.buffer.write(markdown().encode())
        return
    with whole(out) as unfinished:
        unfinished.write_text(markdown(), encoding="utf-8")


@app.command("list")
def list_() -> None:
    """List the claims that can be measured, each with its last result."""
    kept = claims.results()
    for key in sorted(claims.keys()):
        state = "not measured" if key not in kept else "shown" if kept[key]["shown"] else "not shown"
        _screen().print(f"{key}: {state}")


def main() -> None:
    """Run the command line: bad input is one line and exit code 2, and Ctrl-C is one line too."""
    try:
        code = app(standalone_mode=False)
    except (InputError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        if message:
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:
        print("stopped", file=sys.stderr)
    sys.exit(code)


def _screen() -> Console:
    return Console(emoji=False, highlight=False)


if __name__ == "__main__":
    main()
