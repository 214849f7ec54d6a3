"""Results as JSON files, which appear whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossworks.checks import InputError
from lossworks.runs.files import whole

__all__ = ["check_place", "read", "write"]


def read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing if it is not there.

    Raises:
        InputError: it is there and holds something else.
    """
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as results ({error}); give another --results") from error
    if not isinstance(held, dict):
        raise InputError(f"{path}: holds {type(held).__name__}, not results; give another --results")
    return held


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Keep the results.

    Raises:
        InputError: the file cannot be written.
    """
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_place(path: Path) -> None:
    """Find out before minutes of measuring whether the results can be read and kept there.

    Raises:
        InputError: they cannot.
    """
    read(path)
    if path.is_dir() or not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise InputError(f"{path}: cannot be written; give a file in a folder that is there, as --results")
