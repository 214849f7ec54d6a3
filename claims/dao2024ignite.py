"""IGNITE: designs found by climbing a surrogate whose gradient norm was priced."""

from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from claims.record import Measurement
from claims.training import mlp
from lossworks.optim import IGNITE

PAPER = "dao2024ignite"
RULE = (
    "An offline task of 8 dimensions (the worst 800 of 2,000 designs known), a network of 64 and 64, 200 steps of "
    "gradient ascent from the best 128 known: the median true value of the designs is above plain training's with "
    "IGNITE and with a fixed multiplier, each as the mean of 6 seeds, by more than one standard error of the paired "
    "differences."
)

SEEDS, SIZE, KNOWN, DRAWN, CLIMBERS, CLIMBS, EPOCHS = 6, 8, 800, 2000, 128, 200, 60
WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "constrained": {"mode": "constrained"},
    "fixed": {"mode": "fixed"},
    "fixed, multiplier 0.1": {"mode": "fixed", "lam": 0.1},
}


def measure() -> Measurement:
    found = {name: [_found(way, seed) for seed in range(SEEDS)] for name, way in WAYS.items()}
    gains = {
        name: [own - plain for (own, _), (plain, _) in zip(runs, found["plain"], strict=True)]
        for name, runs in found.items()
    }

    def clear(values: list[float]) -> bool:
        spread = torch.tensor(values).std()
        return mean(values) > float(spread) / SEEDS**0.5

    return Measurement(
        shown=clear(gains["constrained"]) and clear(gains["fixed"]),
        measured="median true value (norm of the gradient) "
        + ", ".join(
            f"{mean(v for v, _ in runs):.3f} ({mean(n for _, n in runs):.3f}) {name}" for name, runs in found.items()
        ),
        numbers={
            **{f"median true value, {name}": [value for value, _ in runs] for name, runs in found.items()},
            **{f"norm of the gradient, {name}": [norm for _, norm in runs] for name, runs in found.items()},
        },
        seeds=SEEDS,
    )


def _true(x: Tensor) -> Tensor:
    """A bowl with ripples, best at 0."""
    return -(x.square().mean(dim=1) + 0.3 * (1 - (3 * x).cos()).mean(dim=1))


def _found(way: dict[str, Any] | None, seed: int) -> tuple[float, float]:
    draw = torch.Generator().manual_seed(seed)
    drawn = 2 * torch.randn(DRAWN, SIZE, generator=draw)
    x = drawn[_true(drawn).argsort()[:KNOWN]]
    y = _true(x)
    centre, scale = y.mean(), y.std()
    model = mlp(SIZE, 64, 64, 1, seed=seed)
    inner = torch.optim.Adam(model.parameters(), lr=1e-3)
    step = IGNITE(inner, model, **({"mode": "fixed", "lam": 0.0} if way is None else way))
    for _ in range(EPOCHS):
        for rows in torch.randperm(KNOWN, generator=draw).split(64):
            step.zero_grad()
            (model(x[rows]) - (y[rows] - centre) / scale).square().mean().backward()
            step.price(x[rows])
            step.step()
    designs = x[y.argsort(descending=True)[:CLIMBERS]].clone().requires_grad_()
    climb = torch.optim.Adam([designs], lr=0.05, maximize=True)
    for _ in range(CLIMBS):
        climb.zero_grad()
        model(designs).sum().backward()
        climb.step()
    return median(_true(designs.detach()).tolist()), float(step.price(x) / step.rho)
