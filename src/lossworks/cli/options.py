"""Options that several commands share, so that they mean the same in all of them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lossworks.checks import InputError

__all__ = ["AsJson", "OwnModel", "Quiet", "Run", "column_kinds", "find_model", "path"]


def path(text: str) -> Path:
    """The path that an option names.

    Raises:
        typer.BadParameter: it is empty, which as a path would mean the current folder.
    """
    if not text:
        raise typer.BadParameter("the path is empty")
    return Path(text)


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the answer alone, without headings, notes and progress.")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE.py:FUNCTION",
        help="The function that makes the model. It is needed only where the run trained a model of your own.",
    ),
]


def column_kinds(given: Sequence[str]) -> dict[str, str]:
    """What ``--as NAME=KIND`` says of each column.

    Raises:
        InputError: one of them has no name.
    """
    pairs = [pair.rpartition("=") for pair in given]
    for name, _, kind in pairs:
        if not name:
            raise InputError(f"--as must be NAME=category, NAME=number or NAME=date, got {kind!r}")
    return {name: kind for name, _, kind in pairs}


def find_model(name: str) -> Any:
    """The name of a built-in model as it came, or the function that ``FILE.py:FUNCTION`` names.

    This is the only place where code of a file is run, and only of the file that the user names.

    Raises:
        InputError: the file cannot be imported, or has no such function.
    """
    if ".py:" not in name:
        return name
    file, _, function = name.rpartition(":")
    try:
        if not Path(file).is_file():
            raise InputError(f"--model {name}: no such file {file}")
    except OSError as error:
        raise InputError(f"--model {name}: cannot be read ({error.strerror})") from error
    spec = importlib.util.spec_from_file_location("lossworks_user_model", file)
    if spec is None or spec.loader is None:
        raise InputError(f"--model {name}: {file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--model {name}: {file} fails when imported ({type(error).__name__}: {error})") from error
    if not callable(getattr(module, function, None)):
        raise InputError(f"--model {name}: {file} has no function {function!r}")
    return getattr(module, function)
