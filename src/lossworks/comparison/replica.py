"""The fields of one trained model's result, and the check that a journal holds such results."""

from collections.abc import Mapping, Sequence
from typing import Any

from lossworks.checks import InputError, shown

NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "objective": str,
    "setting": str,
    "setting_number": int,
    "fold": int,
    "repeat": int,
    "dropped": bool,
    "inner_score": (float, int),
    "metrics": dict,
}
OPTIONAL: Mapping[str, type | tuple[type, ...]] = {
    "best_step": int,
    "curve": list,
    "diverged": bool,
    "groups": list,
    "notes": list,
    "portrait": dict,
    "robustness": list,
    "temperature": (float, int),
}


def check_replicas(replicas: Sequence[Mapping[str, Any]], where: object) -> None:
    """Raise unless each result has exactly the fields and types that a run writes.

    Raises:
        InputError: a result that no run has written; the message begins with ``where``, the place it was read from.
    """
    try:
        for replica in replicas:
            _check(replica)
    except ValueError as error:
        raise InputError(f"{where}: holds what no run has written ({error}); choose another --out") from error


def _check(replica: Mapping[str, Any]) -> None:
    if not NEEDED.keys() <= replica.keys():
        raise ValueError(f"a result must have the fields {', '.join(NEEDED)}")
    for name, value in replica.items():
        kind = NEEDED.get(name) or OPTIONAL.get(name)
        if kind is None:
            raise ValueError(f"a result has the unknown field {shown(name)}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"a result's {name} must not be {shown(value)}")
    if not all(isinstance(note, str) for note in replica.get("notes", ())):
        raise ValueError("a result's notes must be texts")
    if not all(isinstance(value, (float, int)) for value in replica["metrics"].values()):
        raise ValueError("a result's metrics must be numbers")
    if not all(value is None or isinstance(value, (float, int)) for value in replica.get("groups", ())):
        raise ValueError("a result's groups must be numbers")
