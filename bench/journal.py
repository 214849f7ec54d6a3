"""Measure what the journal and a resume cost in `compare` on the embedded data: each at most 2 % of its time.

In each round the comparison runs twice. One run keeps its journal in memory and writes its run folder at the end; the
other has a run folder from the start. `ratio` is the median of the rounds' ratios, the second run over the first. But
the time of a run varies by more than 2 %. So `journal` adds up the time that the second run spends on its folder, apart
from writing the results: opening, locking and checking the journal, committing, reading it back, run.json, and every
flush to the disk.

Then the result files are deleted and the run is resumed. Nothing is left to train, so the time of this run without
writing the results is what a resume costs: reading and examining the data again, making the plan, reading the journal.

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
    """Adds up the seconds spent inside some functions; a call from within another of them is not counted twice."""

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
        """Return the seconds added up since the last call."""
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
    lw.compare(objectives=[], folds=2, repeats=1)  # loads what is loaded at first use
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
