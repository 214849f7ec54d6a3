"""FedAU: unknown participation no longer pulls a federated average towards those who are often there."""

from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor

from claims.record import Measurement
from lossworks.federated import ParticipationWeights, fedau_aggregate

PAPER = "wang2024fedau"
RULE = (
    "20 clients with quadratic losses of different optima, half of them there with probability 0.9 and half with 0.08: "
    "after 2,000 rounds of 5 local steps the distance to the optimum of all, averaged over the last quarter of the "
    "rounds, is with the weights below a fifth of that of averaging those present; each of 3 seeds."
)

SEEDS, CLIENTS, SIZE, ROUNDS, STEPS, RATE = 3, 20, 5, 2000, 5, 0.02
OFTEN, SELDOM = 0.9, 0.08
CUTOFFS = (2, 5, 50, 1000)


def measure() -> Measurement:
    ways = ("those present", "unweighted", "known probabilities", *CUTOFFS)
    found = {_named(way): [_distance(way, seed) for seed in range(SEEDS)] for way in ways}
    ours = found[_named(50)]
    return Measurement(
        shown=all(own < 0.2 * other for own, other in zip(ours, found["those present"], strict=True)),
        measured="distance to the optimum " + ", ".join(f"{mean(values):.3f} {name}" for name, values in found.items()),
        numbers={f"distance, {name}": values for name, values in found.items()},
        seeds=SEEDS,
    )


def _named(way: str | int) -> str:
    return f"intervals cut at {way}" if isinstance(way, int) else way


def _weights(way: str | int, probability: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(way, int):
        return ParticipationWeights(CLIENTS, way)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "those present": lambda present: present * (CLIENTS / present.sum().clamp(min=1)),
        "unweighted": lambda present: present.double(),
        "known probabilities": lambda present: present / probability,
    }
    return ways[way]


def _distance(way: str | int, seed: int) -> float:
    draw = torch.Generator().manual_seed(seed)
    often = torch.arange(CLIENTS) < CLIENTS // 2
    probability = torch.where(often, OFTEN, SELDOM).double()
    optima = torch.randn(CLIENTS, SIZE, generator=draw, dtype=torch.float64) + torch.where(often, 1.0, -1.0)[:, None]
    curvature = 0.5 + torch.rand(CLIENTS, SIZE, generator=draw, dtype=torch.float64)
    optimum = (curvature * optima).sum(dim=0) / curvature.sum(dim=0)
    weights, x, tail = _weights(way, probability), torch.zeros(SIZE, dtype=torch.float64), []
    for _ in range(ROUNDS):
        present = torch.rand(CLIENTS, generator=draw) < probability
        local = x.expand(CLIENTS, SIZE)
        for _ in range(STEPS):
            local = local - RATE * curvature * (local - optima)
        x = x + fedau_aggregate(local - x, weights(present))
        tail.append(x)
    return float((torch.stack(tail[-ROUNDS // 4 :]).mean(dim=0) - optimum).norm())
