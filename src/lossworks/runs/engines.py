"""Where units of work are done; the numbers are the same everywhere."""

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
    """Does units of work, here or elsewhere."""

    def run(
        self,
        workload: Workload,
        numbers: Sequence[int],
        *,
        tell: Callable[[int, float], None],
        begin: Callable[[], bool],
        stop: Callable[[], bool],
    ) -> Generator[tuple[int, Results]]:
        """Yield each unit's number and results as it ends; the caller commits them before it asks for the next.

        Args:
            workload: What the units are of.
            numbers: The units to be done, in the order in which they are to be begun.
            tell: To be called, from the caller's thread, with a unit's number and how much of it is done, in parts of
                its size.
            begin: Asked before each unit is begun; False begins no further one, those under way are finished.
            stop: Asked often; True ends at once, without what is under way.
        """


class Local:
    """In this process, one unit after the other.

    Args:
        memory: About how many bytes the work may take.
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
    """The engine of that name; ``address`` is where the Ray cluster is, ``memory`` what the local one may take."""
    if name not in ENGINES:
        raise InputError(f"engine must be 'local' or 'ray', got {name!r}{nearest(str(name), ENGINES)}")
    if name == "ray":
        from lossworks.runs.cluster import Ray

        if memory is not None:
            raise InputError(f"memory {memory!r} is of the local engine: on a Ray cluster each task takes its share")
        return Ray(address)
    if address is not None:
        raise InputError(f"address {address!r} is of a Ray cluster: it goes with engine 'ray' alone")
    return Local(budget(memory, device))
