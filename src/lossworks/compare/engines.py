"""Where the work of a plan is done; the numbers are the same everywhere."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Protocol

import torch

from lossworks.checks import nearest
from lossworks.compare.errors import InputError
from lossworks.compare.memory import budget
from lossworks.compare.work import Results, Workload, work

__all__ = ["Engine", "Local", "find_engine"]

ENGINES = ("local", "ray")


class Engine(Protocol):
    """Does the work of groups, here or elsewhere."""

    def run(
        self,
        workload: Workload,
        numbers: Sequence[int],
        *,
        tell: Callable[[int, float], None],
        begin: Callable[[], bool],
        stop: Callable[[], bool],
    ) -> Generator[tuple[int, Results]]:
        """Yield each group's number and results as it ends; the caller commits them before it asks for the next.

        Args:
            workload: What the groups are groups of.
            numbers: The groups to be done, in the order in which they are to be begun.
            tell: To be called, from the caller's thread, with a group's number and how many of its models' worth of
                work is done.
            begin: Asked before each group is begun; False begins no further one, those under way are finished.
            stop: Asked often; True ends at once, without what is under way.
        """


class Local:
    """In this process, one group after the other.

    Args:
        memory: About how many bytes the models in training may take.
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
            results = work(workload, number, tell=partial(tell, number), stop=stop, memory=self.memory)
            if results is None:
                return
            yield number, results


def find_engine(name: str, address: str | None, memory: int | str | None, device: torch.device) -> Engine:
    """The engine of that name; ``address`` is where the Ray cluster is, ``memory`` what the local one may take."""
    if name not in ENGINES:
        raise InputError(f"engine must be 'local' or 'ray', got {name!r}{nearest(str(name), ENGINES)}")
    if name == "ray":
        from lossworks.compare.cluster import Ray

        if memory is not None:
            raise InputError(f"memory {memory!r} is of the local engine: on a Ray cluster each task takes its share")
        return Ray(address)
    if address is not None:
        raise InputError(f"address {address!r} is of a Ray cluster: it goes with engine 'ray' alone")
    return Local(budget(memory, device))
