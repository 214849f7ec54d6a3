"""The command line's start: its commands in groups, its errors and its exit codes."""

import contextlib
import io
import os
import sys
from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from lossworks.checks import InputError
from lossworks.cli.attack import attack
from lossworks.cli.claims import claims
from lossworks.cli.compare import compare
from lossworks.cli.find import find
from lossworks.cli.list import list_parts
from lossworks.cli.predict import predict
from lossworks.cli.screen import err, out, plain
from lossworks.cli.show import show

__all__ = ["app", "main"]

NARROWEST = 80
UNWRITTEN, REFUSED, INTERRUPTED = 1, 2, 130
GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Decide": {"compare": compare},
    "Use": {"predict": predict, "attack": attack},
    "Data": {},
    "Model": {},
    "Learn": {"find": find, "show": show, "list": list_parts, "claims": claims},
}
"""The commands by what a person wants, in the order of the help, which leaves out a group that has none."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, train with, compare and trust a training objective.",
    epilog="Exit codes: 0 done; 1 nothing found, or the output cannot be written; 2 bad input; 130 stopped.",
)
for group, commands in GROUPS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=group)(command)


def main() -> None:
    """Run the command line; bad input is answered with one line and exit code 2."""
    _fit_the_screen()
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except (InputError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        if message:
            _say_error(" ".join(message.split()))
        sys.exit(REFUSED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(UNWRITTEN)
    except OSError as error:
        _say_error(f"{error.filename or 'the standard output'}: {error.strerror or error}")
        _drop_output()
        sys.exit(UNWRITTEN)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        err.print("stopped")
    sys.exit(code)


def _fit_the_screen() -> None:
    """Make every text printable: unknown characters become escapes, and a narrow screen cuts nothing off."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for screen in (out, err):
        if screen.width < NARROWEST:
            screen.width = NARROWEST


def _say_error(message: str) -> None:
    err.print("[red]error:[/red]", plain(message), soft_wrap=True)


def _drop_output() -> None:
    """Drop what the standard output did not take; otherwise the interpreter tries to write it again when it ends."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
