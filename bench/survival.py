"""Kill runs of `lossworks compare` at random moments, resume them, and compare their results byte for byte.

A comparison on the embedded data first runs without a stop. Then runs of the same plan are killed with `kill -9`, at
moments drawn evenly over the time that the first one took. A killed run is resumed with `--resume`, and the toss of a
coin decides whether it is killed again or may finish. Every run that finishes must have the same files as the run that
was never stopped. The log says how far each killed process had come.

    python bench/survival.py [--kills 20] [--seed 0] [--json]
"""

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

COMPARE = [sys.executable, "-m", "lossworks.cli", "compare", "--quiet"]
PLAN = ["--objectives", "LDRLoss,FocalLoss,BrierLoss,ZLoss", "--folds", "3", "--repeats", "1", "--seed", "1"]
SAME = ("results.parquet", "model.safetensors", "model.json", "recipe.py")


def command(run: Path) -> list[str]:
    """Return the command that begins the run, or resumes it if it has begun."""
    return [*COMPARE, "--resume", str(run)] if (run / "run.json").exists() else [*COMPARE, *PLAN, "--out", str(run)]


def attempt(run: Path, seconds: float | None) -> bool:
    """Run one process, which is killed after the seconds, and return whether it, or at least its run, finished."""
    with subprocess.Popen(command(run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return (run / "run.json").exists() and json.loads((run / "run.json").read_text())["finished"]
        if process.returncode:
            raise SystemExit(f"{' '.join(command(run))} failed: {process.stderr.read().decode()}")
    return True


def committed(run: Path) -> int:
    """Count the groups in the journal, in a copy of it, so that the files that the kill left stay untouched."""
    if not (run / "journal.sqlite").exists():
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for file in run.glob("journal.sqlite*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / "journal.sqlite")) as store:
            known = store.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            return store.execute("SELECT count(*) FROM groups").fetchone()[0] if known else 0


def state(run: Path) -> str:
    """Say how far a run has come."""
    if not (run / "run.json").exists():
        return "not begun"
    return f"{committed(run)} groups committed" + ", handing over" * (run / "model.json").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object, last")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, runs, kills, finished, same = Path(folder) / "whole", 1, 0, 0, 0
        began = time.monotonic()
        attempt(whole, None)
        seconds = time.monotonic() - began
        print(f"never stopped: {committed(whole)} groups in {seconds:.1f} s on {os.cpu_count()} cores", flush=True)
        while True:
            run = Path(folder) / f"run-{runs}"
            again = kills < options.kills and (not run.exists() or draw.random() < 0.5)
            moment = draw.uniform(0, seconds) if again else None
            if not attempt(run, moment):
                kills += 1
                print(f"run {runs}, kill {kills:>2} after {moment:5.1f} s: {state(run)}", flush=True)
                continue
            alike = [name for name in SAME if (run / name).read_bytes() == (whole / name).read_bytes()]
            finished, same = finished + 1, same + (len(alike) == len(SAME))
            unlike = ", ".join(name for name in SAME if name not in alike)
            print(f"run {runs} finished: {'the same bytes' if not unlike else f'UNLIKE in {unlike}'}", flush=True)
            if kills >= options.kills:
                break
            runs += 1
    print(f"{kills} kills, {finished} runs finished, {same} the same byte for byte")
    if options.json:
        print(json.dumps({"kills": kills, "finished": finished, "same": same}))
    if same < finished:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
