"""``lossworks list``: every part by its role."""

from itertools import groupby

from rich.table import Table

from lossworks import catalog
from lossworks.cli.options import AsJson, Quiet
from lossworks.cli.parts import described
from lossworks.cli.screen import out, print_json

__all__ = ["list_parts"]


def list_parts(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List every part by its role, with what it helps with."""
    entries = sorted(catalog.parts().values(), key=lambda entry: entry.role)
    if as_json:
        print_json([described(entry) for entry in entries])
        return
    if quiet:
        for entry in entries:
            out.print(entry.name)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for role, members in groupby(entries, lambda entry: entry.role):
        table.add_row(f"[bold]{role}[/bold]")
        for entry in members:
            table.add_row(f"  {entry.name}", ", ".join(entry.helps))
    out.print(table)
