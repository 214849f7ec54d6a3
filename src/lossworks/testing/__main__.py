"""The commands of the contract: the page of exactness, and the skeleton of a new part.

``python -m lossworks.testing --write docs/exactness.md`` measures every part and writes the page.
``python -m lossworks.testing new loss UnhingedLoss`` writes a part to begin with, its test and its paper's entry.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from lossworks.checks import InputError
from lossworks.testing.page import catalog_page
from lossworks.testing.ranks import Ranks
from lossworks.testing.skeleton import ROLES, new


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the catalog and write the page of exactness, or write the skeleton of a new part."""
    parser = argparse.ArgumentParser(prog="python -m lossworks.testing", description=main.__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes; standard output otherwise")
    commands = parser.add_subparsers(dest="command", metavar="new")
    skeleton = commands.add_parser("new", help="write a part to begin with, its test and its paper's entry")
    skeleton.add_argument("role", metavar="ROLE", help=f"one of {', '.join(ROLES)}")
    skeleton.add_argument("name", metavar="NAME", help="the public name of the part, such as UnhingedLoss")
    skeleton.add_argument("--paper", metavar="KEY", help="the key of its paper, such as zhu2023ldr")
    given = parser.parse_args(arguments)
    if given.command == "new":
        try:
            written = new(given.role, given.name, paper=given.paper)
        except InputError as error:
            skeleton.error(str(error))
        print(*written, sep="\n")  # noqa: T201  (what was done)
        print(f"Now replace what is marked REPLACE, and run: pytest -k {given.name}")  # noqa: T201
    else:
        _write_page(given.write)


def _write_page(path: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(Ranks(size)) for size in (2, 3)]
        page = catalog_page(ranks)
    if path is None:
        print(page)  # noqa: T201  (what was asked for)
    else:
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
