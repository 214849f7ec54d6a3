"""``lossworks show``: what one part says of itself, its papers, and what was measured."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated

import typer

from lossworks import catalog
from lossworks.checks import InputError
from lossworks.cli.options import AsJson, Quiet
from lossworks.cli.parts import described
from lossworks.cli.screen import out, plain, print_json, say_indented, without_markup

__all__ = ["show"]

HEADING = re.compile(r"\s*\w+:$")
ITEM = re.compile(r"\s*- |\s+\*{0,2}\w+(, \w+)*: ")


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a part, such as LDRLoss.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show one part: what it is for, its equation, arguments and papers, and what was measured of their claims."""
    try:
        entry = catalog.show(name)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error
    said = inspect.getdoc(entry.part) or ""
    if as_json:
        print_json(described(entry) | {"description": said})
        return
    if quiet:
        out.print(plain(without_markup(entry.summary)), soft_wrap=True)
        return
    helps = f"; helps with {', '.join(entry.helps)}" if entry.helps else ""
    out.print(f"[bold]{entry.path}[/bold]  [dim]{entry.role}{helps}[/dim]\n")
    out.print(plain("\n".join(_lines(said, out.width)).rstrip()), soft_wrap=True)
    for key in entry.papers:
        paper, measured = catalog.papers()[key], catalog.claims().get(key)
        out.print(f"\n[bold]{key}[/bold]")
        say_indented(paper.cite())
        if paper.claim or paper.note:
            say_indented(paper.claim or paper.note)
        if measured is not None:
            say_indented(f"measured: {measured.verdict}. {measured.measured}")


def _lines(docstring: str, width: int) -> Iterator[str]:
    """The docstring's lines, with its prose wrapped anew at this width; equations and examples stay as they are."""
    announced: int | None = None
    for block in re.split(r"\n\s*\n", docstring):
        lines, indent = block.splitlines(), _indent(block)
        if announced is not None and indent > announced:
            yield from lines
        else:
            announced = indent if block.endswith("::") else None
            literal = block.lstrip().startswith((".. ", ">>> "))
            yield from lines if literal else _wrapped(lines, width)
        yield ""


def _wrapped(lines: list[str], width: int) -> Iterator[str]:
    """A block of prose, each item on lines of its own."""
    pieces: list[str] = []
    for line in lines:
        if not pieces or ITEM.match(line) or HEADING.match(pieces[-1]):
            pieces.append(line)
        else:
            pieces[-1] += f" {line.strip()}"
    for piece in pieces:
        indent = " " * _indent(piece)
        hanging = indent + "    " if ITEM.match(piece) else indent
        yield from textwrap.wrap(
            piece.strip(),
            width,
            initial_indent=indent,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
