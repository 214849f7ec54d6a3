"""Units of work: anything with a name, a seed and a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Results", "Tell", "Unit", "Workload"]

Results = list[dict[str, Any]]
"""What a unit gives: one or more results, each of what JSON has."""
Tell = Callable[[float], None]
"""Told how much of a unit is done, in parts of its size."""


@dataclass(frozen=True)
class Unit:
    """One piece of work that is done as a whole, and committed to the journal as a whole.

    Attributes:
        name: What it is about, for the user.
        seed: From which everything that it draws is drawn.
        size: How many results it has, which stands for how much work it is.
    """

    name: str
    seed: int
    size: int = 1


class Workload(Protocol):
    """All that the work of any unit needs; it can be sent to another process."""

    @property
    def device(self) -> torch.device:
        """Where the work is done, on the machine that does it."""

    @property
    def units(self) -> Sequence[Unit]:
        """Every unit; a unit's number is its place here."""

    def order(self) -> list[int]:
        """The units' numbers in the order in which they are begun."""

    def work(
        self,
        number: int,
        *,
        tell: Tell | None = None,
        stop: Callable[[], bool] | None = None,
        memory: int | None = None,
    ) -> Results | None:
        """Do one unit: the same numbers come out wherever it runs.

        Args:
            number: The unit's.
            tell: Told how much of the unit is done.
            stop: Asked now and then; when it says so, the work ends and None comes back.
            memory: About how many bytes may be taken; by default a share of what is free. It changes no number.
        """

    def own_code(self) -> list[Any]:
        """The functions, classes and modules that are the user's own, whose code must go with the workload."""
