"""Weight compander: bounded weights that are kept from zero answer better on top of weight decay."""

from functools import partial
from math import pi
from statistics import mean

import torch
from torch import nn

from claims.record import Measurement
from claims.training import accuracy, digits, fit, mlp, outputs
from lossworks.layers import add_weight_compander
from lossworks.losses import CrossEntropyLoss

PAPER = "cakaj2023compander"
RULE = (
    "150 training rows of digits, 64-128-128-10, SGD with momentum, 100 epochs, means of 8 seeds: with weight decay of "
    "1e-3 and the compander (a = 0.3, b = 0.2) the test accuracy is above that of weight decay alone and of neither, "
    "and fewer weights are below 0.01 than with weight decay alone; and no weight of any seed is beyond a pi / 2."
)

SEEDS, ROWS, EPOCHS = 8, 150, 100
A, B, DECAY, NEAR = 0.3, 0.2, 1e-3, 0.01
WAYS = {"neither": (0.0, False), "weight decay": (DECAY, False), "both": (DECAY, True)}


def measure() -> Measurement:
    runs = {name: [_scores(*way, seed) for seed in range(SEEDS)] for name, way in WAYS.items()}
    answers, near, largest = ({name: [scores[number] for scores in runs[name]] for name in WAYS} for number in range(3))
    better = mean(answers["both"]) > max(mean(answers["neither"]), mean(answers["weight decay"]))
    fewer = mean(near["both"]) < mean(near["weight decay"])
    return Measurement(
        shown=better and fewer and max(largest["both"]) < A * pi / 2,
        measured="test accuracy, share of weights below 0.01, largest weight: "
        + "; ".join(f"{n}: {mean(answers[n]):.4f}, {mean(near[n]):.3f}, {max(largest[n]):.3f}" for n in WAYS),
        numbers={
            **{f"test accuracy, {name}": answers[name] for name in WAYS},
            **{f"share of weights below 0.01, {name}": near[name] for name in WAYS},
            **{f"largest weight, {name}": largest[name] for name in WAYS},
        },
        seeds=SEEDS,
    )


def _scores(decay: float, companded: bool, seed: int) -> tuple[float, float, float]:
    """The test accuracy, how many weights are near zero, and the largest one."""
    data = digits(seed=seed)
    model = mlp(64, 128, 128, 10, seed=seed)
    if companded:
        add_weight_compander(model, A, B)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=decay)
    fit(model, CrossEntropyLoss(), data.x[:ROWS], data.y[:ROWS], optimizer=sgd, epochs=EPOCHS, seed=seed)
    weights = torch.cat([layer.weight.detach().flatten() for layer in model if isinstance(layer, nn.Linear)]).abs()
    answer = accuracy(outputs(model, data.x_test), data.y_test)
    return answer, float((weights < NEAR).double().mean()), float(weights.max())
