"""Measure what bounds cost: CROWN of a network of four layers, compared with the auto_LiRPA package if it is installed.

In each round the two run in turn. Printed are the medians of their paired ratios and the largest difference between
their bounds.

    python bench/crown.py [--json] [--rounds 20] [--threads 1]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lossworks.certify import crown_bounds, interval_bounds

INPUTS, WIDTH, OUTPUTS, ROWS, RADIUS = 64, 256, 10, 256, 0.02

Bounds = Callable[[], tuple[Tensor, Tensor]]


def spent(call: Bounds) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peer(model: nn.Module, x: Tensor) -> Bounds | None:
    """Return the same bounds, as auto_LiRPA computes them."""
    try:
        from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
    except ImportError:
        return None
    bounded = BoundedModule(model, torch.empty_like(x))
    around = BoundedTensor(x, PerturbationLpNorm(norm=float("inf"), eps=RADIUS))

    def bounds() -> tuple[Tensor, Tensor]:
        low, high = bounded.compute_bounds(x=(around,), method="CROWN")
        return low, high

    return bounds


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in ((INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, OUTPUTS)):
        layers += [nn.Linear(width, following), nn.ReLU()]
    model, x = nn.Sequential(*layers[:-1]).eval(), torch.rand(ROWS, INPUTS)

    def ours() -> tuple[Tensor, Tensor]:
        return crown_bounds(model, x, RADIUS)

    found = {
        "passes forward": statistics.median(
            spent(ours) / spent(lambda: interval_bounds(model, x, RADIUS)) for _ in range(options.rounds)
        )
    }
    theirs = peer(model, x)
    if theirs is not None:
        pairs = [(spent(theirs), spent(ours)) for _ in range(options.rounds + 1)][1:]
        found["times as fast as auto_LiRPA"] = statistics.median(other / own for other, own in pairs)
        apart = [(a - b).abs().max() for a, b in zip(ours(), theirs(), strict=True)]
        found["largest difference of a bound"] = float(max(apart))
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
