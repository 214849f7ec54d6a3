"""Gradient noise: 20 layers that begin poorly learn with it, and do not without."""

from functools import partial
from statistics import mean

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from claims.record import Measurement
from claims.training import accuracy, digits, mlp, outputs
from lossworks.optim import AnnealedGradientNoise

PAPER = "neelakantan2015noise"
RULE = (
    "Digits through 20 hidden layers of 50 ReLU whose weights begin as N(0, 0.1²), plain SGD clipped at norm 10: test "
    "accuracy is above 0.5 with noise (the better of eta 0.1 and 0.3) and below 0.2 without, means of 2 seeds."
)

SEEDS, EPOCHS, LAYERS, WIDTH, RATE, CLIP = 2, 40, 20, 50, 0.05, 10.0
NOISES = (0.0, 0.1, 0.3)


def measure() -> Measurement:
    found = {
        (start, eta): [_accuracy(start, eta, seed) for seed in range(SEEDS)]
        for start, etas in (("poor", NOISES), ("He", (0.0, 0.3)))
        for eta in etas
    }
    means = {key: mean(values) for key, values in found.items()}
    return Measurement(
        shown=max(means["poor", 0.1], means["poor", 0.3]) > 0.5 and means["poor", 0.0] < 0.2,
        measured="test accuracy "
        + ", ".join(f"{value:.3f} {start} start, eta {eta}" for (start, eta), value in means.items()),
        numbers={f"accuracy, {start} start, eta {eta}": values for (start, eta), values in found.items()},
        seeds=SEEDS,
    )


def _accuracy(start: str, eta: float, seed: int) -> float:
    data, draw = digits(seed=seed), torch.Generator().manual_seed(seed)
    model = mlp(64, *([WIDTH] * LAYERS), 10, seed=seed)
    normal = (
        partial(nn.init.normal_, std=0.1) if start == "poor" else partial(nn.init.kaiming_normal_, nonlinearity="relu")
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            normal(layer.weight, generator=draw)
            nn.init.zeros_(layer.bias)
    step = AnnealedGradientNoise(torch.optim.SGD(model.parameters(), lr=RATE), eta, clip=CLIP, generator=draw)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data.x), generator=draw).split(50):
            step.zero_grad()
            cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            step.step()
    return accuracy(outputs(model, data.x_test), data.y_test)
