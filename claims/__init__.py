"""The papers' claims, measured: each module here is the smallest honest experiment that shows one claim's direction.

A module is called by its paper's key and has ``PAPER``, ``RULE`` (the pass rule, fixed beforehand) and ``measure()``.
``ldr_table`` is the LDR paper's whole table in small, ``document`` tells of all of it.
"""

import importlib
import pkgutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claims.kept import check_place, read, write
from lossworks.catalog import papers
from lossworks.checks import InputError, nearest

__all__ = ["keys", "results", "run"]

KEPT = Path(__file__).parents[1] / "src" / "lossworks" / "catalog" / "claims.json"


def keys() -> list[str]:
    """The papers whose claim can be measured."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name in papers()]


def results(path: Path | None = None) -> dict[str, Any]:
    """The last measured results by paper."""
    return read(path or KEPT)


def run(wanted: Sequence[str] | None = None, path: Path | None = None) -> Iterator[dict[str, Any]]:
    """Measure these claims (all without names), keep each result as soon as it is there, and yield it.

    Raises:
        InputError: a key that has no experiment, or a file that cannot be written.
    """
    known, path = keys(), path or KEPT
    for key in wanted or known:
        if key not in known:
            raise InputError(
                f"claims: none is measured for {key!r}{nearest(key, known)}; python -m claims list has them"
            )
    check_place(path)
    for key in wanted or known:
        module = importlib.import_module(f"claims.{key}")
        began = time.monotonic()
        measurement = module.measure()
        record = {
            "paper": key,
            "claimed": papers()[key].claim,
            "rule": module.RULE,
            "measured": measurement.measured,
            "shown": bool(measurement.shown),
            "numbers": measurement.numbers,
            "seeds": measurement.seeds,
            "seconds": round(time.monotonic() - began, 1),
        }
        write(path, dict(sorted((read(path) | {key: record}).items())))
        yield record
