"""Checks that the integrations share."""

from lossworks.objective import Objective
from lossworks.roles import asked_once

__all__ = ["check_objective", "coupling"]


def check_objective(objective: object) -> None:
    """Raise unless the argument is an :class:`Objective`."""
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective, got {type(objective).__name__}")


def coupling(objective: Objective) -> str | None:
    """The name of the part that must see the rows of a step together, or None if there is none."""
    if objective.loss.couples_batch:
        return type(objective.loss).__name__
    if objective.weights is not None and asked_once(objective.weights):
        return type(objective.weights).__name__
    return None
