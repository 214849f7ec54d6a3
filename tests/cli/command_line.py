"""What the tests of the command line share: a run's result, a small table, and options that train it quickly."""

from typing import NamedTuple

import numpy as np

ROWS = 60
FAST = ["--objectives", "FocalLoss", "--folds", "2", "--repeats", "1", "--model", "linear"]
MODEL_FILE = "import torch\ndef build(shape, outputs):\n    return torch.nn.Linear(shape[0], outputs)\n"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def one_line(self) -> str:
        """What is on stderr, which must be a single line, with nothing on stdout."""
        assert "Traceback" not in self.err
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        assert self.err.startswith("error: ")
        return self.err


def columns() -> dict[str, list]:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, ROWS)).round(3).tolist()
    churn = [
        "yes" if value + 0.3 * noise > 0.2 else "no" for value, noise in zip(a, random.normal(size=ROWS), strict=True)
    ]
    return {"a": a, "b": b, "team": ["red", "blue"] * (ROWS // 2), "churn": churn}
