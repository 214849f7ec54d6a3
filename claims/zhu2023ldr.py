"""Adaptive LDR: robust to label noise without losing on clean labels, on digits."""

from collections.abc import Callable
from functools import partial
from statistics import mean

import torch

from claims.record import Measurement
from claims.training import accuracy, digits, fit, flip_labels, mlp, outputs
from lossworks.losses import AdaptiveLDRLoss, CompSumLoss, LDRLoss
from lossworks.roles import Loss

PAPER = "zhu2023ldr"
RULE = (
    "With 60% symmetric label noise, mean test accuracy with adaptive LDR (lam0=10) is above cross-entropy's by more "
    "than 0.03; with clean labels it is above 0.95."
)

NOISE = 0.6
SEEDS = 4
LOSSES: dict[str, Callable[[int], Loss]] = {
    "cross-entropy": lambda rows: CompSumLoss(tau=1.0),
    "LDR lam=10": lambda rows: LDRLoss(lam=10.0),
    "adaptive LDR lam0=10": lambda rows: AdaptiveLDRLoss(rows, lam0=10.0),
}


def measure() -> Measurement:
    scores = {
        f"{name}, {noise:.0%} noise": [_accuracy(loss, noise, seed) for seed in range(SEEDS)]
        for noise in (NOISE, 0.0)
        for name, loss in LOSSES.items()
    }
    means = {name: mean(values) for name, values in scores.items()}
    noisy, reference = means["adaptive LDR lam0=10, 60% noise"], means["cross-entropy, 60% noise"]
    return Measurement(
        shown=noisy > reference + 0.03 and means["adaptive LDR lam0=10, 0% noise"] > 0.95,
        measured="accuracy " + "; ".join(f"{value:.3f} {name}" for name, value in means.items()),
        numbers={f"accuracy, {name}": values for name, values in scores.items()},
        seeds=SEEDS,
    )


def _accuracy(loss: Callable[[int], Loss], noise: float, seed: int) -> float:
    data, model = digits(seed=seed), mlp(64, 128, 10, seed=seed)
    labels = flip_labels(data.y, noise, 10, seed=seed)
    adam = partial(torch.optim.Adam, lr=3e-3)
    fit(model, loss(len(labels)), data.x, labels, optimizer=adam, epochs=40, seed=seed)
    return accuracy(outputs(model, data.x_test), data.y_test)
