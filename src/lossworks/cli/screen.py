"""What every command prints with: the two consoles, text as it stands, numbers, JSON and bytes."""

import json
import re
import shlex
import sys
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossworks.checks import number

__all__ = [
    "err",
    "number",
    "out",
    "plain",
    "print_json",
    "print_utf8",
    "say_command",
    "say_indented",
    "say_item",
    "without_markup",
]

STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""The characters that a terminal obeys, or that change the order in which it shows others."""

out, err = Console(emoji=False, highlight=False), Console(stderr=True, emoji=False, highlight=False)


def plain(text: str) -> Text:
    """The text as it stands: brackets are no markup, and no character steers the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def without_markup(line: str) -> str:
    """A line of a docstring without its reStructuredText roles and backticks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", line).replace("``", "")


def say_indented(text: str) -> None:
    """Print the text, with every line four spaces in."""
    out.print(Padding(plain(text), (0, 0, 0, 4)))


def say_item(text: str, *, style: str) -> None:
    """Print one item of a list, with its further lines below the first word."""
    item = Table.grid()
    item.add_column()
    item.add_column(overflow="fold")
    item.add_row("- ", plain(text))
    out.print(item, style=style)


def say_command(screen: Console, title: str, *words: str) -> None:
    """Print a command of lossworks that a shell takes as it stands, on one line."""
    screen.print(plain(f"{title:<8} lossworks {shlex.join(words)}"), soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document for programs, in ASCII and on one line."""
    sys.stdout.write(json.dumps(document, default=str) + "\n")


def print_utf8(text: str) -> None:
    """Print what programs read: the same bytes in every locale, with an escape for what would steer a terminal."""
    sys.stdout.buffer.write(STEERING.sub(lambda found: repr(found[0])[1:-1], text).encode())
