"""The bench, which runs a workload: an engine does the units that the journal lacks, and the user sees the progress."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from lossworks.runs.engines import Engine
from lossworks.runs.journal import Journal
from lossworks.runs.units import Results, Workload

__all__ = ["Bench", "Leader", "Progress", "Watch"]


@dataclass(frozen=True)
class Progress:
    """The progress of a run: what is at work, how much is done, and an estimate of the time left.

    Attributes:
        running: The name of the unit that is at work.
        done: How much is done, in units of one result.
        total: How much there is to do, in units of one result.
        share: The share that is done, in [0, 1].
        seconds_left: The estimated seconds until the end, or None if it is too early to tell.
        best: What is best so far, as text; empty before there is anything.
        note: The latest note, such as that memory ran out and a unit was done in parts.
    """

    running: str
    done: int
    total: int
    share: float
    seconds_left: float | None
    best: str
    note: str = ""


Watch = Callable[[Progress], None]


class Leader(Protocol):
    """Follows the results of a run and says what is best so far."""

    def count(self, results: Results) -> None:
        """Add the results of a unit."""

    def best(self) -> str:
        """What is best so far, as text; empty before there is anything."""

    def enough(self) -> bool:
        """Whether the results so far are enough for a report."""


class Bench:
    """Runs a workload: an engine does every unit that the journal lacks, and its results are committed.

    Args:
        workload: The workload to do.
        journal: The journal that keeps the results.
        leader: The object that follows the results.
        watch: Called with a :class:`Progress` from time to time, or None.
        began: The time at which the run began, in seconds of the monotonic clock.
    """

    def __init__(self, workload: Workload, journal: Journal, leader: Leader, watch: Watch | None, began: float) -> None:
        self.workload, self.journal, self.leader = workload, journal, leader
        self.watch, self.began = watch, began
        self.total = sum(unit.size for unit in workload.units)
        self.done, self.fresh = 0, 0
        self.within: dict[int, float] = {}
        self.note = ""
        self.stopped = self.spent = False

    def run(self, engine: Engine, budget: float | None) -> str | None:
        """Do all units that are not done, and return what cut the run short, as text, or None if nothing did."""
        committed = self.journal.done()
        self.done = sum(self.workload.units[number].size for number in committed)
        self._count(self.journal.results())

        def begin() -> bool:
            self.spent = budget is not None and time.monotonic() - self.began > budget and self.done > 0
            return not self.spent

        numbers = [number for number in self.workload.order() if number not in committed]
        with (
            _interruptible(self),
            contextlib.closing(
                engine.run(self.workload, numbers, tell=self._tell, begin=begin, stop=lambda: self.stopped)
            ) as finished,
        ):
            for number, results in finished:
                self.journal.add(number, results)
                self.within.pop(number, None)
                self.done += self.workload.units[number].size
                self.fresh += self.workload.units[number].size
                self._count(results)
        if self.done == self.total:
            return None
        if self.stopped and not self.leader.enough():
            raise KeyboardInterrupt  # there is nothing to report yet
        return f"stopped after its budget of {budget:g} s" if self.spent else "stopped by the user"

    def _count(self, results: Results) -> None:
        for result in results:
            self.note = (result.get("notes") or [self.note])[-1]
        self.leader.count(results)

    def _tell(self, number: int, within: float) -> None:
        if self.watch is None:
            return
        self.within[number] = within
        under_way = sum(self.within.values())
        worked, left = self.fresh + under_way, self.total - self.done - under_way
        seconds = (time.monotonic() - self.began) * left / worked if worked >= 1 else None
        done, share = int(self.done + under_way), (self.done + under_way) / self.total
        name = self.workload.units[number].name
        self.watch(Progress(name, done, self.total, share, seconds, self.leader.best(), self.note))


@contextlib.contextmanager
def _interruptible(bench: Bench) -> Iterator[None]:
    """Make Ctrl-C ask for a stop at the next evaluation; a second Ctrl-C interrupts as usual."""

    def ask(*_: object) -> None:
        bench.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # only the main thread has signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
