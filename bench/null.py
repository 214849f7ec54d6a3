"""Count how often `compare` calls an objective better than itself under another name, over many small data sets.

The two train with seeds of their own, so their scores differ by chance only; at most 5 % may be called better.

    python bench/null.py [--sets 100] [--rows 300]
"""

import argparse
import json
import time
from collections import Counter

import numpy as np
import polars as pl
from sklearn.datasets import make_classification

import lossworks as lw
from lossworks.losses import CrossEntropyLoss


def draw(seed: int, rows: int) -> pl.DataFrame:
    """Return the table of a small binary problem with some label noise."""
    x, y = make_classification(
        rows, n_features=8, n_informative=4, flip_y=0.15, class_sep=0.8, weights=[0.6], random_state=seed
    )
    return pl.DataFrame(x, schema=[f"x{i}" for i in range(x.shape[1])]).with_columns(y=pl.Series(y.astype(np.int64)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--rows", type=int, default=300)
    options = parser.parse_args()
    began, verdicts, exact = time.monotonic(), Counter(), 0
    for seed in range(options.sets):
        result = lw.compare(
            draw(seed, options.rows),
            target="y",
            objectives={"CrossEntropyLoss": CrossEntropyLoss(), "the same": CrossEntropyLoss()},
            metric="balanced_accuracy",
            seed=seed,
        )
        row = result.ranking.filter(pl.col("objective") == "the same").row(0, named=True)
        verdicts[row["verdict"]] += 1
        exact += row["difference"] == 0 and row["p"] == 1
        print(
            f"{seed + 1}/{options.sets}: {row['verdict']}, difference {row['difference']:+.4f}, p {row['p']:.3f}",
            flush=True,
        )
    summary = {
        "sets": options.sets,
        "better": verdicts["better"],
        "better_rate": verdicts["better"] / options.sets,
        "verdicts": dict(verdicts),
        "no_difference_at_all": exact,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(f"called better than itself: {verdicts['better']} of {options.sets} ({summary['better_rate']:.1%})")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
