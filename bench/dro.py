"""Measure how long the inner maximum over the weights takes, and how much time a weighting adds to a loss.

The maximum is compared with cvxpy and its default open-source solver, which gets the same losses. In each round the two
run in turn; the ratio is the median of the rounds' ratios. Beside it is printed how far the two values are apart. Every
form of every weighting is then timed at three sizes beside the plainest one, `KLDRO(temperature=1)`, in turn.

    python bench/dro.py [--json] [--rows 100000] [--rounds 3] [--overhead-rounds 200] [--no-cvxpy]
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
from lossworks.weights import KLDRO, ChiSquareDRO, CompositionalEMA, CVaR, GroupDRO, PMDROWeights

OVERHEAD_ROWS, CLASSES = 4096, 10
"""Where the price of a weighting on top of the loss is measured."""


SIZES = (1_000, 4_096, 100_000)


def forms(rows: int) -> dict[str, Weighting]:
    """Every form and mode; the first is what the others are held against."""
    return {
        "KLDRO(temperature=1)": KLDRO(temperature=1.0),
        "KLDRO(radius=.1)": KLDRO(radius=0.1),
        "KLDRO(radius=1)": KLDRO(radius=1.0),
        "KLDRO(radius=tensor)": KLDRO(radius=torch.tensor(0.1)),
        "ChiSquareDRO(radius=.5)": ChiSquareDRO(radius=0.5),
        "ChiSquareDRO(radius=2)": ChiSquareDRO(radius=2.0),
        "ChiSquareDRO(radius=tensor)": ChiSquareDRO(radius=torch.tensor(0.5)),
        "CVaR(alpha=.2)": CVaR(alpha=0.2),
        "CVaR(alpha=tensor)": CVaR(alpha=torch.tensor(0.2)),
        "CVaR(alpha=.2, smoothing=.5)": CVaR(alpha=0.2, smoothing=0.5),
        "CompositionalEMA()": CompositionalEMA(),
        "PMDROWeights()": PMDROWeights(rows),
        "GroupDRO()": GroupDRO(10),
    }


def by_form(losses: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each form, and the median of its paired ratios to the first."""
    index, group = torch.arange(len(losses)), torch.arange(len(losses)) % 10
    found = forms(len(losses))

    def call(weighting: Weighting) -> Callable[[], object]:
        return lambda: weighting(losses, index=index, group=group)

    calls = {name: call(weighting) for name, weighting in found.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 3):
        for name, each in calls.items():
            times[name].append(spent(each))
    plainest = next(iter(times.values()))[3:]
    return {
        name: {
            "ms": 1e3 * statistics.median(own[3:]),
            "times": statistics.median(a / b for a, b in zip(own[3:], plainest, strict=True)),
        }
        for name, own in times.items()
    }


def problem(weighting: Weighting, losses: Tensor) -> cvxpy.Problem:
    """State the same maximum as a problem for cvxpy."""
    n = len(losses)
    w = cvxpy.Variable(n, nonneg=True)
    value, constraints = losses.numpy() @ w / n, [cvxpy.sum(w) == n]
    if isinstance(weighting, ChiSquareDRO):
        constraints.append(cvxpy.norm(w - 1) <= (2 * weighting.radius * n) ** 0.5)
    elif isinstance(weighting, CVaR):
        constraints.append(w <= 1 / weighting.alpha)
    elif weighting.radius is not None:
        constraints.append(-cvxpy.sum(cvxpy.entr(w)) / n <= weighting.radius)
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
    parser.add_argument("--no-cvxpy", action="store_true", help="time our own forms alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    losses = 3 * torch.rand(options.rows, dtype=torch.float64)
    found: dict[str, object] = {}
    compared = [] if options.no_cvxpy else ["KLDRO(temperature=1)", "KLDRO(radius=.1)"]
    compared += ["ChiSquareDRO(radius=.5)", "CVaR(alpha=.2)"] if compared else []
    for name in compared:
        row = measure(forms(options.rows)[name], losses, options.rounds)
        found[name] = row
        print(
            f"{name:>28}  cvxpy {row['cvxpy_s']:8.2f} s  ours {row['ours_ms']:8.2f} ms  times {row['times']:8.0f}  "
            f"values differ by {row['difference']:.1e}",
            flush=True,
        )
    for size in SIZES:
        each = by_form(losses[:size] if size <= len(losses) else 3 * torch.rand(size, dtype=torch.float64), 60)
        found[f"at {size}"] = each
        for name, row in each.items():
            print(f"{name:>28}  {size:>7} rows  {row['ms']:8.3f} ms  {row['times']:6.2f} of the first", flush=True)
    for name, weighting in forms(OVERHEAD_ROWS).items():
        if not weighting.needs_index and not isinstance(weighting, GroupDRO):
            found[f"{name} added"] = added = overhead(weighting, options.overhead_rounds)
            print(f"{name:>28}  adds {added:.3f} ms to a cross-entropy of {OVERHEAD_ROWS} rows", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
