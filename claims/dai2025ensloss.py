"""EnsLoss: overfits less than any fixed binary loss, on few rows of many noisy features."""

from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
from sklearn.datasets import make_classification

from claims.record import Measurement
from claims.training import accuracy, fit, mlp, outputs, split
from lossworks.losses import EnsLoss, ExponentialLoss, HingeLoss, LogisticLoss
from lossworks.roles import Loss

PAPER = "dai2025ensloss"
RULE = (
    "Mean test accuracy with EnsLoss is at most 0.005 under that with the logistic, the exponential and the hinge loss."
)

SEEDS = 5
LOSSES: dict[str, Callable[[int], Loss]] = {
    "EnsLoss": lambda seed: EnsLoss(generator=torch.Generator().manual_seed(seed)),
    "logistic": lambda seed: LogisticLoss(),
    "exponential": lambda seed: ExponentialLoss(),
    "hinge": lambda seed: HingeLoss(),
}


def measure() -> Measurement:
    scores = {name: [_accuracy(loss(seed), seed) for seed in range(SEEDS)] for name, loss in LOSSES.items()}
    means = {name: mean(values) for name, values in scores.items()}
    return Measurement(
        shown=means["EnsLoss"] >= max(means.values()) - 0.005,
        measured="accuracy " + ", ".join(f"{value:.4f} {name}" for name, value in means.items()),
        numbers={f"accuracy, {name}": values for name, values in scores.items()},
        seeds=SEEDS,
    )


def _accuracy(loss: Loss, seed: int) -> float:
    data = split(
        *make_classification(1200, 400, n_informative=30, n_redundant=50, flip_y=0.1, random_state=seed), seed=seed
    )
    model = mlp(400, 64, 64, 1, seed=seed)
    sgd = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=5e-4)
    fit(model, loss, data.x, data.y, optimizer=sgd, epochs=60, batch_size=128, seed=seed)
    return accuracy(outputs(model, data.x_test), data.y_test)
