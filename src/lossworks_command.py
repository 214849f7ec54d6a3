"""Where the ``lossworks`` command starts: outside the package, whose import takes seconds, so that Ctrl-C is heard."""

import contextlib
import os
import signal
from typing import NoReturn


def main() -> None:
    """Run the command line; Ctrl-C is one line, whenever it comes and however often."""
    signal.signal(signal.SIGINT, _leave)
    import lossworks.comparison  # noqa: F401  # what takes the time
    from lossworks import cli

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:  # another, while the first was being answered
        _leave()
    finally:
        signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> NoReturn:
    """End at once: there is nothing to lose yet, or any more."""
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
