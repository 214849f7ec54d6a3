"""Multi-sample dropout: with eight draws of the masks a network has learned more after as many steps."""

from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from claims.record import Measurement
from claims.training import accuracy, digits, fit, mlp, outputs
from lossworks.layers import MultiSampleDropout, multi_sample_dropout_loss
from lossworks.losses import CrossEntropyLoss

PAPER = "inoue2019multisample"
RULE = (
    "400 training rows of digits, 64-128-10 with dropout of 0.5 before the last layer, SGD with momentum: the training "
    "loss without dropout is lower with 8 draws than with 1 after 8 and after 20 epochs, and the test error after 20 "
    "is at most 0.003 higher; means of 4 seeds."
)

SEEDS, ROWS = 4, 400
DRAWS = (1, 2, 8, 32)
EPOCHS = (8, 20)


def measure() -> Measurement:
    found = {
        (draws, epochs): [_scores(draws, epochs, seed) for seed in range(SEEDS)] for draws in DRAWS for epochs in EPOCHS
    }
    loss = {key: [value for value, _ in runs] for key, runs in found.items()}
    error = {key: [value for _, value in runs] for key, runs in found.items()}
    early, late = EPOCHS
    faster = all(mean(loss[8, epochs]) < mean(loss[1, epochs]) for epochs in EPOCHS)
    return Measurement(
        shown=faster and mean(error[8, late]) <= mean(error[1, late]) + 0.003,
        measured=f"training loss after {early} and {late} epochs, test error, by draws: "
        + "; ".join(
            f"{draws}: {mean(loss[draws, early]):.4f}, {mean(loss[draws, late]):.4f}, {mean(error[draws, late]):.4f}"
            for draws in DRAWS
        ),
        numbers={
            **{f"training loss, {draws} draws, {epochs} epochs": loss[draws, epochs] for draws, epochs in found},
            **{f"test error, {draws} draws, {epochs} epochs": error[draws, epochs] for draws, epochs in found},
        },
        seeds=SEEDS,
    )


def _scores(draws: int, epochs: int, seed: int) -> tuple[float, float]:
    """The training loss without dropout and the test error."""
    data = digits(seed=seed)
    x, y = data.x[:ROWS], data.y[:ROWS]
    first, between, last = mlp(64, 128, 10, seed=seed)
    masks = torch.Generator().manual_seed(seed)
    model = nn.Sequential(first, between, MultiSampleDropout(last, draws, generator=masks))
    loss = CrossEntropyLoss()

    def of_draws(output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return multi_sample_dropout_loss(output, target, loss)

    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    fit(model, of_draws, x, y, optimizer=sgd, epochs=epochs, seed=seed)
    return float(loss(outputs(model, x), y)), 1 - accuracy(outputs(model, data.x_test), data.y_test)
