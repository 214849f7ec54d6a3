"""Measure how long the inner maximum over the weights takes, and how much time a weighting adds to a loss.

The maximum is compared with cvxpy and its default open-source solver, which gets the same losses. In each round the two
run in turn; the ratio is the median of the rounds' ratios. Beside it is printed how far the two values are apart.

    python bench/dro.py [--json] [--rows 100000] [--rounds 3] [--overhead-rounds 200]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import cvxpy
import torch
from torch import Tensor

from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.roles import Weighting
from lossworks.weights import KLDRO, ChiSquareDRO, CVaR

OVERHEAD_ROWS, CLASSES = 4096, 10
"""Where the price of a weighting on top of the loss is measured."""


def problem(weighting: Weighting, losses: Tensor) -> cvxpy.Problem:
    """State the same maximum as a problem for cvxpy."""
    n = len(losses)
    w = cvxpy.Variable(n, nonneg=True)
    value, constraints = losses.numpy() @ w / n, [cvxpy.sum(w) == n]
    if isinstance(weighting, ChiSquareDRO):
        constraints.append(cvxpy.norm(w - 1) <= (2 * weighting.radius * n) ** 0.5)
    elif isinstance(weighting, CVaR):
        constraints.append(w <= 1 / weighting.alpha)
    else:
        value = value + weighting.temperature * cvxpy.sum(cvxpy.entr(w)) / n
    return cvxpy.Problem(cvxpy.Maximize(value), constraints)


def spent(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(weighting: Weighting, losses: Tensor, rounds: int) -> dict[str, float]:
    """Return the median seconds of each, their paired ratio, and how far the solver's value is from ours."""
    asked = problem(weighting, losses)
    weighting.solve(losses)
    pairs = []
    for _ in range(rounds):
        theirs = spent(asked.solve)
        pairs.append((theirs, statistics.median(spent(lambda: weighting.solve(losses)) for _ in range(20))))
    ours = float(weighting.solve(losses).value)
    return {
        "cvxpy_s": statistics.median(theirs for theirs, _ in pairs),
        "ours_ms": 1e3 * statistics.median(own for _, own in pairs),
        "times": statistics.median(theirs / own for theirs, own in pairs),
        "difference": abs(asked.value - ours) / abs(ours),
    }


def overhead(weighting: Weighting, rounds: int) -> float:
    """Return the milliseconds that the weighting adds to a forward and backward pass of cross-entropy."""
    logits = torch.randn(OVERHEAD_ROWS, CLASSES, requires_grad=True)
    target = torch.randint(CLASSES, (OVERHEAD_ROWS,))
    plain, weighted = Objective(CrossEntropyLoss()), Objective(CrossEntropyLoss(), weighting)

    def step(objective: Objective) -> float:
        return spent(lambda: objective.risk(logits, target).backward())

    return 1e3 * statistics.median(-step(plain) + step(weighted) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object, last")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overhead-rounds", type=int, default=200)
    options = parser.parse_args()
    torch.manual_seed(0)
    losses = 3 * torch.rand(options.rows, dtype=torch.float64)
    weightings: dict[str, Weighting] = {
        "KLDRO": KLDRO(temperature=1.0),
        "ChiSquareDRO": ChiSquareDRO(radius=0.5),
        "CVaR": CVaR(alpha=0.2),
    }
    found = {}
    for name, weighting in weightings.items():
        found[name] = measure(weighting, losses, options.rounds) | {
            "overhead_ms": overhead(weighting, options.overhead_rounds)
        }
        print(
            f"{name:>14}  cvxpy {found[name]['cvxpy_s']:8.2f} s  ours {found[name]['ours_ms']:8.2f} ms  times "
            f"{found[name]['times']:8.0f}  values differ by {found[name]['difference']:.1e}  "
            f"overhead at {OVERHEAD_ROWS} {found[name]['overhead_ms']:.3f} ms",
            flush=True,
        )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
