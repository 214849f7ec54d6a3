"""Comp-sum losses: near cross-entropy is better than either end of the family, on digits."""

from functools import partial
from statistics import mean

import torch

from claims.record import Measurement
from claims.training import accuracy, digits, fit, mlp, outputs
from lossworks.losses import CompSumLoss

PAPER = "mao2023crossentropy"
RULE = "Mean test accuracy with tau=1 is above that with tau=0 and that with tau=2, each by more than 0.02."

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)
SEEDS = 3


def measure() -> Measurement:
    scores: dict[float, list[float]] = {tau: [_accuracy(tau, seed) for seed in range(SEEDS)] for tau in TAUS}
    means = {tau: mean(values) for tau, values in scores.items()}
    return Measurement(
        shown=means[1.0] > max(means[0.0], means[2.0]) + 0.02,
        measured="accuracy " + ", ".join(f"{value:.3f} at tau={tau:g}" for tau, value in means.items()),
        numbers={f"accuracy at tau={tau:g}": values for tau, values in scores.items()},
        seeds=SEEDS,
    )


def _accuracy(tau: float, seed: int) -> float:
    data, model = digits(seed=seed), mlp(64, 64, 10, seed=seed)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    fit(model, CompSumLoss(tau), data.x, data.y, optimizer=sgd, epochs=15, clip=5.0, seed=seed)
    return accuracy(outputs(model, data.x_test), data.y_test)
