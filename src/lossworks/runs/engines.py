"""Engines, which say where units of work are done; the numbers are the same everywhere."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Protocol

import torch

from lossworks.checks import InputError, nearest
from lossworks.runs.memory import budget
from lossworks.runs.units import Results, Workload

__all__ = ["Engine", "Local", "find_engine"]

ENGINES = ("local", "ray")


class Engine(Protocol):
    """An engine does units of work, here or elsewhere."""

    def run(
        self,
        workload: Workload,
        numbers: Sequence[int],
        *,
        tell: Callable[[int, float], None],
        begin: Callable[[], bool],
        stop: Callable[[], bool],
    ) -> Generator[tuple[int, Results]]:
        """Yield each unit's number and results when it is finished; the caller commits them before asking for the next.

        Args:
            workload: The workload that the units belong to.
            numbers: The numbers of the units to do, in the order in which to start them.
            tell: A progress callback, called from the caller's thread with a unit's number and how much of the unit is
                done, in parts of its size.
            begin: Called before each unit is started; if it returns False, no further unit is started, and those at
                work are finished.
            stop: Called often; if it returns True, the run ends at once, without the units at work.
        """


class Local:
    """Engine in this process: one unit after the other.

    Args:
        memory: About how many bytes the work may use.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory

    def run(
        self,
        workload: Workload,
        numbers: Sequence[int],
        *,
        tell: Callable[[int, float], None],
        begin: Callable[[], bool],
        stop: Callable[[], bool],
    ) -> Generator[tuple[int, Results]]:
        """See :class:`Engine`."""
        for number in numbers:
            if stop() or not begin():
                return
            results = workload.work(number, tell=partial(tell, number), stop=stop, memory=self.memory)
            if results is None:
                return
            yield number, results


def find_engine(name: str, address: str | None, memory: int | str | None, device: torch.device) -> Engine:
    """The engine of that name; ``address`` is the Ray cluster's, ``memory`` what the local engine may use."""
    if name not in ENGINES:
        raise InputError(f"engine must be 'local' or 'ray', got {name!r}{nearest(str(name), ENGINES)}")
    if name == "ray":
        from lossworks.runs.cluster import Ray

        if memory is not None:
            raise InputError(f"memory {memory!r} is for the local engine: on a Ray cluster each task takes its share")
        return Ray(address)
    if address is not None:
        raise InputError(f"address {address!r} is for a Ray cluster: it goes with engine 'ray' alone")
    return Local(budget(memory, device))
