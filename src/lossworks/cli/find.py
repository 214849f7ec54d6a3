"""``lossworks find``: the parts that help with a trouble."""

from typing import Annotated

import typer

from lossworks import catalog
from lossworks.checks import InputError
from lossworks.cli.options import AsJson, Quiet
from lossworks.cli.parts import described
from lossworks.cli.screen import out, print_json, say_indented, without_markup

__all__ = ["find"]

NOTHING_FOUND = 1


def find(
    text: Annotated[str, typer.Argument(metavar="TEXT", help='The trouble in words, such as "my labels are noisy".')],
    limit: Annotated[int, typer.Option(metavar="N", help="The largest number of parts to print.")] = 10,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the parts that help with the trouble that you describe."""
    try:
        found = catalog.find(text, limit)
    except ValueError as error:
        raise InputError(str(error)) from error
    if as_json:
        print_json([described(entry) | {"terms": list(terms)} for entry, terms in found])
    elif quiet:
        for entry, _ in found:
            out.print(entry.name)
    elif found:
        for entry, terms in found:
            unlike = f"; not for {', '.join(entry.warns)}" if entry.warns else ""
            out.print(f"[bold]{entry.name}[/bold]  [dim]{entry.role}; {', '.join(terms or entry.helps)}{unlike}[/dim]")
            say_indented(without_markup(entry.summary))
        out.print("[dim]`lossworks show NAME` says more about a part.[/dim]")
    else:
        out.print(f"Nothing was found. Parts help with: {', '.join(catalog.HELPS)}.")
    if not found:
        raise typer.Exit(NOTHING_FOUND)
