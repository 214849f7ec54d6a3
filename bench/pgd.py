"""Measure what ten steps of PGD cost, in forward-and-backward passes of the model that is attacked.

In each round ten training passes (forward, and backward to the parameters) and one attack run in turn. The number is
the median of the rounds' ratios.

    python bench/pgd.py [--json] [--rounds 40] [--threads 1]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lossworks.perturb import PGD

STEPS = 10
SIZES = {"MLP 64-256-256-10, 128 rows": (64, 256, 128), "MLP 784-1024-1024-10, 256 rows": (784, 1024, 256)}


def spent(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(inputs: int, width: int, rows: int, rounds: int) -> float:
    """Return the cost of the attack in passes."""
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    x, y = torch.randn(rows, inputs), torch.randint(10, (rows,))
    attack = PGD(0.1, steps=STEPS)

    def train() -> None:
        for _ in range(STEPS):
            model.zero_grad()
            cross_entropy(model(x), y).backward()

    def attacked() -> None:
        attack(lambda changed: cross_entropy(model(changed), y, reduction="none"), x)

    train()
    attacked()
    pairs = [(spent(train) / STEPS, spent(attacked)) for _ in range(rounds)]
    return statistics.median(whole / one for one, whole in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found = {name: measure(*sizes, options.rounds) for name, sizes in SIZES.items()}
    for name, passes in found.items():
        print(f"{name:>32}  {passes:5.2f} passes")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
