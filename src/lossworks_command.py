"""The start of the ``lossworks`` command, outside the package, so that Ctrl-C works while the package is imported."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

READERS = frozenset({"claims", "find", "list", "show"})
"""The commands that only read the catalog: they do not import the code that trains, and can be interrupted at once."""


def main() -> None:
    """Run the command line; Ctrl-C prints one line, whenever and however often it is pressed."""
    signal.signal(signal.SIGINT, _leave)
    from lossworks import cli

    if _only_reads(sys.argv[1:]):
        cli.main()
        return
    import lossworks.comparison  # noqa: F401  # takes seconds, in which Ctrl-C ends at once

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:  # a second Ctrl-C, while the first was handled
        _leave()
    finally:
        signal.signal(signal.SIGINT, _leave)


def _only_reads(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for nothing but the catalog or the help."""
    return not arguments or arguments[0] in READERS or "--help" in arguments


def _leave(*_: object) -> NoReturn:
    """End the process at once, because no work would be lost."""
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
