"""Files that appear whole or not at all, and are on the disk when they do."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lossworks.compare.errors import InputError

__all__ = ["synced", "whole", "whole_folder"]


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` when all is written, and vanishes when it is not."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
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
    """A folder to write files to that move into ``folder`` when all are written, and vanish when one is not."""
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
    """Have a file's content, or a folder's names, on the disk, where the system knows how to."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    text = str(error).partition(" (os error")[0]  # as polars says it
    return error.strerror or text or type(error).__name__
