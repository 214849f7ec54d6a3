"""Units of work: anything with a name, a seed and a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Results", "Tell", "Unit", "Workload"]

Results = list[dict[str, Any]]
"""The results of a unit: one or more, each of JSON values."""
Tell = Callable[[float], None]
"""A function that is called with how much of a unit is done, in the units of its size."""


@dataclass(frozen=True)
class Unit:
    """One piece of work, which is done as a whole and committed to the journal as a whole.

    Attributes:
        name: The name that the user sees.
        seed: The seed of everything that the unit draws.
        size: The number of its results, which also measures how much work it is.
    """

    name: str
    seed: int
    size: int = 1


class Workload(Protocol):
    """A workload: all units and everything that their work needs; it can be sent to another process."""

    @property
    def device(self) -> torch.device:
        """The device of the work, on the machine that does it."""

    @property
    def units(self) -> Sequence[Unit]:
        """All units; the number of a unit is its position in this sequence."""

    def order(self) -> list[int]:
        """The numbers of the units, in the order in which to start them."""

    def work(
        self,
        number: int,
        *,
        tell: Tell | None = None,
        stop: Callable[[], bool] | None = None,
        memory: int | None = None,
    ) -> Results | None:
        """Do one unit; its results are the same wherever it runs.

        Args:
            number: The number of the unit.
            tell: Called with how much of the unit is done.
            stop: Called from time to time; if it returns True, the work ends and None is returned.
            memory: About how many bytes the work may use; by default a share of what is free. It changes no number.
        """

    def own_code(self) -> list[Any]:
        """The user's own functions, classes and modules, whose code must be sent with the workload."""
