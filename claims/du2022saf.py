"""The trajectory loss: flatter minima and better answers under label noise, at the time of the plain loss."""

import time
from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from claims.record import Measurement
from claims.training import accuracy, digits, flip_labels, mlp, outputs
from lossworks.diagnose import sam_sharpness
from lossworks.losses import CrossEntropyLoss, TrajectoryLoss
from lossworks.optim import SAM
from lossworks.roles import Loss

PAPER = "du2022saf"
RULE = (
    "500 training rows of digits with a fifth of the labels wrong, 64-128-10, 80 epochs of SGD with momentum on a "
    "cosine schedule: with the trajectory loss the cross-entropy of the training rows grows less along a step of "
    "0.2 up its gradient, and test accuracy is not lower, each as the mean of 8 seeds; and a step of a "
    "64-1024-1024-10 network takes at most 1.1 times the processor time of one with cross-entropy."
)

SEEDS, ROWS, EPOCHS, BATCH, RATE, STEP = 8, 500, 80, 64, 0.05, 0.2
WAYS = ("cross-entropy", "trajectory loss", "SAM")


def measure() -> Measurement:
    found = {way: [_scores(way, seed) for seed in range(SEEDS)] for way in WAYS}
    sharp = {way: [value for value, _ in runs] for way, runs in found.items()}
    right = {way: [value for _, value in runs] for way, runs in found.items()}
    times = _times()
    cost = {way: times[way] / times["cross-entropy"] for way in WAYS}
    flatter = mean(sharp["trajectory loss"]) < mean(sharp["cross-entropy"])
    return Measurement(
        shown=flatter
        and mean(right["trajectory loss"]) >= mean(right["cross-entropy"])
        and cost["trajectory loss"] <= 1.1,
        measured="growth of the loss, test accuracy, time of a step: "
        + "; ".join(f"{way} {mean(sharp[way]):.4f}, {mean(right[way]):.4f}, {cost[way]:.2f}" for way in WAYS),
        numbers={
            **{f"growth of the loss, {way}": sharp[way] for way in WAYS},
            **{f"test accuracy, {way}": right[way] for way in WAYS},
            **{f"time of a step over cross-entropy's, {way}": cost[way] for way in WAYS},
        },
        seeds=SEEDS,
    )


def _loss(way: str, rows: int) -> Loss:
    return TrajectoryLoss(rows, 10) if way == "trajectory loss" else CrossEntropyLoss()


def _step(way: str, optimizer: SGD, value: Callable[[], Tensor]) -> None:
    """One step, of two gradients with SAM."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value()
        loss.backward()
        return loss

    (SAM(optimizer) if way == "SAM" else optimizer).step(closure)


def _scores(way: str, seed: int) -> tuple[float, float]:
    """By how much the training loss grows, and the test accuracy."""
    data = digits(seed=seed)
    x, y = data.x[:ROWS], flip_labels(data.y[:ROWS], 0.2, 10, seed=seed)
    model, loss = mlp(64, 128, 10, seed=seed), _loss(way, ROWS)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9)
    schedule, draw = CosineAnnealingLR(optimizer, EPOCHS), torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        loss.set_progress(epoch / EPOCHS)
        for rows in torch.randperm(ROWS, generator=draw).split(BATCH):
            _step(way, optimizer, _of_rows(model, loss, x, y, rows))
        schedule.step()
    return float(sam_sharpness(model, x, y, STEP)), accuracy(outputs(model, data.x_test), data.y_test)


def _of_rows(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, rows: Tensor) -> Callable[[], Tensor]:
    return lambda: loss(model(x[rows]), y[rows], index=rows)


def _times() -> dict[str, float]:
    """Seconds of a step, the least of several rounds in turn."""
    x, y, rows = torch.zeros(BATCH, 64), torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH)
    values, least = {}, dict.fromkeys(WAYS, float("inf"))
    for way in WAYS:
        model = mlp(64, 1024, 1024, 10, seed=0)
        values[way] = SGD(model.parameters(), lr=1e-3), _of_rows(model, _loss(way, BATCH), x, y, rows)
    for _ in range(15):
        for way, (optimizer, value) in values.items():
            began = time.process_time()
            for _ in range(10):
                _step(way, optimizer, value)
            least[way] = min(least[way], (time.process_time() - began) / 10)
    return least
