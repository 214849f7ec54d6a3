"""Files that are written as a whole or not at all, and are on the disk once they appear."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lossworks.checks import InputError

__all__ = ["check_own", "parse_json", "synced", "whole", "whole_folder"]

LARGEST_JSON = 2**26
"""The number of characters that are read at most; no description or result of ours has as many."""


def check_own(path: Path) -> Path:
    """The path unchanged, or an error if it is a link: a run folder's files must be in it and lead nowhere else."""
    if path.is_symlink():
        raise InputError(f"{path}: is a link to another place, which is not followed; put the file itself there")
    return path


def parse_json(text: str, *, nan: bool = False) -> Any:
    """Parse JSON that is strict (no name twice, no NaN unless it is allowed) and neither huge nor deeply nested.

    Raises:
        ValueError: the text is not such JSON; the message says what is wrong, in one line.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{len(text):,} characters of JSON are more than the {LARGEST_JSON:,} that are read")
    try:
        return json.loads(text, parse_constant=None if nan else _no_constant, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name stands twice in one JSON object")
    return named


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it replaces ``path`` when all is written, and is removed when an error occurs."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)  # left by a killed process, or a link that someone put there
        yield unfinished
        synced(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to; its files move to ``folder`` when all are written, and are removed after an error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as staging:
            yield Path(staging)
            files = sorted(Path(staging).iterdir())
            for file in files:
                synced(file)
            for file in files:
                file.replace(folder / file.name)
        synced(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({_reason(error)})") from error


def synced(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk, where the system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    text = str(error).partition(" (os error")[0]  # the form of polars's messages
    return error.strerror or text or type(error).__name__
