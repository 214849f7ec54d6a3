"""What the journal and a resume cost on the embedded `compare`: at most 2 % of its time.

In each round the comparison is run twice, in turns: with its journal in memory, its run folder written at the end; and
with a run folder from the start. `ratio` is the median over rounds of their paired times. As 2 % is less than what a
machine wavers, `journal` also adds up, inside the second, all that is spent on the folder but for the results
themselves: opening, locking and checking the journal, committing, reading it back, run.json, every flush to the disk.

Then the results are taken away and the run is resumed: nothing is left to train, so what it takes beside handing over
is what a resume costs: reading and examining the data again, the plan, and the journal.

    python bench/journal.py [--rounds 5] [--json]
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lossworks as lw
from lossworks.comparison import run
from lossworks.comparison.handover.comparison import Comparison
from lossworks.runs import files, folder
from lossworks.runs.journal import Journal

REACH = 0.02
KEPT = ("journal.sqlite", "run.json")


class Clock:
    """The seconds spent inside some functions; a call from within another is not counted twice."""

    def __init__(self, *functions: tuple[object, str]) -> None:
        self.seconds, self._inside = 0.0, 0
        for owner, name in functions:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*args: object, **options: object) -> object:
            began, self._inside = time.perf_counter(), self._inside + 1
            try:
                return function(*args, **options)
            finally:
                self._inside -= 1
                if not self._inside:
                    self.seconds += time.perf_counter() - began

        return timed

    def taken(self) -> float:
        """The seconds since it was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object, last")
    options = parser.parse_args()
    methods = [(Journal, name) for name in ("__init__", "add", "done", "results", "close")]
    keeping = Clock(*methods, *((folder, name) for name in ("_read", "_make", "_begin", "finish", "synced")))
    for owner, name in ((run, "described"), (run, "finish"), (files, "synced")):
        setattr(owner, name, keeping._timed(getattr(owner, name)))
    handing = Clock((Comparison, "save"))
    lw.compare(objectives=[], folds=2, repeats=1)  # warms what is loaded at first use
    found: dict[str, list[float]] = {"ratio": [], "journal": [], "resume": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            memory, disk = Path(scratch) / f"memory-{number}", Path(scratch) / f"disk-{number}"
            arms = {
                "memory": lambda at=memory: lw.compare().save(at),
                "disk": lambda at=disk: lw.compare(out=at),
            }
            seconds, spent = {}, 0.0
            for name in ("memory", "disk") if number % 2 else ("disk", "memory"):
                keeping.taken()
                seconds[name] = timed(arms[name])
                spent = keeping.taken() if name == "disk" else spent
            same = (memory / "results.parquet").read_bytes() == (disk / "results.parquet").read_bytes()
            if not same:
                raise SystemExit("the results with a journal on disk are not those with one in memory")
            for file in disk.iterdir():
                if file.name not in KEPT:
                    file.unlink()
            handing.taken()
            resumed = timed(lambda at=disk: lw.compare(resume=at)) - handing.taken()
            found["ratio"].append(seconds["disk"] / seconds["memory"])
            found["journal"].append(spent / seconds["disk"])
            found["resume"].append(resumed / seconds["disk"])
            print(
                f"in memory {seconds['memory']:6.2f} s, on disk {seconds['disk']:6.2f} s, of which journal "
                f"{1e3 * spent:5.0f} ms; resumed with nothing left {1e3 * resumed:5.0f} ms beside handing over",
                flush=True,
            )
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name in ("journal", "resume"):
        print(f"{name}: {medians[name]:.2%} of a comparison{'' if medians[name] <= REACH else f', above {REACH:.0%}'}")
    print(f"on disk against in memory: {medians['ratio']:.3f} times")
    if options.json:
        print(json.dumps({name: round(value, 4) for name, value in medians.items()}))


if __name__ == "__main__":
    main()
