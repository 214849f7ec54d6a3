"""Measure the peak memory of `lossworks compare` on a large table.

It should be at most 1 GB above three times the size of the float32 table.

One fresh process writes the CSV, and another runs the comparison on it and reports its own peak memory. With `--json`
the numbers are printed last.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

OBJECTIVES = ["LDRLoss", "FocalLoss", "BrierLoss", "GeneralizedCrossEntropyLoss", "LogitAdjustedLoss"]


def write(path: Path, rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    y = (x[:, :5].sum(axis=1) + rng.normal(size=rows) > 1).astype(int)
    table = {f"x{i}": x[:, i] for i in range(columns)}
    pl.DataFrame(table | {"y": np.where(y, "yes", "no")}).write_csv(path)


def compare(path: Path) -> None:
    import lossworks as lw

    began = time.monotonic()
    result = lw.compare(path, "y", objectives=OBJECTIVES, folds=3, repeats=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.monotonic() - began, "peak_bytes": peak, "answer": result.answer}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=["write", "compare"])
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.step == "write":
        write(options.path, options.rows, options.columns)
        return
    if options.step == "compare":
        compare(options.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.csv"
        own = [
            sys.executable,
            __file__,
            "--path",
            str(path),
            "--rows",
            str(options.rows),
            "--columns",
            str(options.columns),
        ]
        subprocess.run([*own, "--step", "write"], check=True)
        done = subprocess.run([*own, "--step", "compare"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    table = options.rows * options.columns * 4
    limit = 3 * table + 10**9
    print(found["answer"])
    print(f"peak {found['peak_bytes'] / 1e9:.2f} GB, limit {limit / 1e9:.2f} GB, {found['seconds']:.0f} s")
    if options.json:
        print(json.dumps({"peak_bytes": found["peak_bytes"], "limit_bytes": limit, "seconds": found["seconds"]}))


if __name__ == "__main__":
    main()
