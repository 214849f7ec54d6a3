"""``python -m lossworks.testing --write docs/exactness.md`` measures every part and writes the page."""

import argparse
import contextlib
from pathlib import Path

from lossworks.testing.page import catalog_page
from lossworks.testing.ranks import Ranks


def main() -> None:
    """Measure the catalog and write the page, or print it."""
    parser = argparse.ArgumentParser(prog="python -m lossworks.testing", description=main.__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes; standard output otherwise")
    path = parser.parse_args().write
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(Ranks(size)) for size in (2, 3)]
        page = catalog_page(ranks)
    if path is None:
        print(page)  # noqa: T201  (what was asked for)
    else:
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
