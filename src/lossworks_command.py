"""Where the ``lossworks`` command starts: outside the package, whose import takes seconds, so that Ctrl-C is heard."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

READERS = frozenset({"claims", "find", "list", "show"})
"""The commands that only read the catalog: they need nothing of what trains, and there is nothing to lose in them."""


def main() -> None:
    """Run the command line; Ctrl-C is one line, whenever it comes and however often."""
    signal.signal(signal.SIGINT, _leave)
    from lossworks import cli

    if _only_reads(sys.argv[1:]):
        cli.main()
        return
    import lossworks.comparison  # noqa: F401  # what takes the time, while Ctrl-C still ends all at once

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:  # another, while the first was being answered
        _leave()
    finally:
        signal.signal(signal.SIGINT, _leave)


def _only_reads(arguments: Sequence[str]) -> bool:
    """Whether nothing but the catalog or the help is asked for."""
    return not arguments or arguments[0] in READERS or "--help" in arguments


def _leave(*_: object) -> NoReturn:
    """End at once: there is nothing to lose yet, or any more."""
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
