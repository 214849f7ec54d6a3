"""Measure a training step of an output layer over very many classes: the factored spherical head against a dense layer.

A step is a forward pass, a backward pass and an SGD step on random hidden rows. The dense layer computes cross-entropy
in two ways, by torch's chunked ``linear_cross_entropy`` and from the plain logits, and the faster of the two is
compared. In each round all run in turn; the ratio is the median of the rounds' ratios.

    python bench/spherical.py [--json] [--rounds 5] [--threads 2] [--classes 200000]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lossworks.fused import FactoredSphericalHead
from lossworks.losses import ZLoss

ROWS, FEATURES, LR = 128, 256, 0.1
GROWTH = (100_000, 800_000)
STEPS = 20
"""Steps of ours that are timed as one, as a single one is short."""


def dense(classes: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], None]:
    """Take one step of a dense layer."""
    weight = nn.Parameter(torch.randn(classes, FEATURES) / FEATURES**0.5)
    optimizer = torch.optim.SGD([weight], lr=LR)
    hidden = torch.randn(ROWS, FEATURES, requires_grad=True)
    target = torch.randint(classes, (ROWS,))

    def step() -> None:
        optimizer.zero_grad()
        hidden.grad = None
        loss(hidden, weight, target).backward()
        optimizer.step()

    return step


def factored(classes: int) -> Callable[[], None]:
    """Take some steps of the spherical head."""
    head = FactoredSphericalHead(FEATURES, classes, ZLoss())
    batches = [(torch.randn(ROWS, FEATURES), torch.randint(classes, (ROWS,))) for _ in range(STEPS)]

    def steps() -> None:
        for hidden, target in batches:
            rows = hidden.clone().requires_grad_()
            head.loss(rows, target).backward()
            head.step(LR)

    return steps


def spent(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, default=200_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peers = {
        "plain": dense(options.classes, lambda h, w, y: F.cross_entropy(h @ w.T, y)),
        "torch chunked": dense(options.classes, F.linear_cross_entropy),
    }
    ours = factored(options.classes)
    grown = {classes: factored(classes) for classes in GROWTH}
    for step in (*peers.values(), ours, *grown.values()):
        step()
    rounds = [
        {name: spent(step) for name, step in peers.items()}
        | {"ours": spent(ours) / STEPS}
        | {f"ours at {classes}": spent(steps) / STEPS for classes, steps in grown.items()}
        for _ in range(options.rounds)
    ]
    middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    small, large = (f"ours at {classes}" for classes in GROWTH)
    found = {
        "times_faster": statistics.median(min(one[name] for name in peers) / one["ours"] for one in rounds),
        "growth": statistics.median(one[large] / one[small] for one in rounds),
        **{f"{name}_ms": 1e3 * seconds for name, seconds in middle.items()},
    }
    for name, value in found.items():
        print(f"{name:>24} {value:10.3f}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
