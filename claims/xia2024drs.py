"""Dual smoothing: the largest radius that can be certified, and what is certified on average, beside plain smoothing.

Where a hyperplane that leans on both halves alike tells the classes apart, two halves with noise of 1/sqrt(2) certify
what the whole does with noise of 1. A larger noise for the whole is the alternative, so each has its best of three.
"""

from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from claims.record import Measurement
from claims.training import fit, images, mlp
from lossworks.certify import DualRandomizedSmoothing, RandomizedSmoothing, checkerboard_split
from lossworks.losses import CrossEntropyLoss

PAPER = "xia2024drs"
RULE = (
    "On digits of 8x8 pixels in [0, 1], networks trained with the noise that they are certified with, images split "
    "as a chessboard: at each noise (0.125, 0.25, 0.5) the largest certified radius of dual smoothing is above that of "
    "plain smoothing, and so is the average certified radius, each at its best noise; means of 2 seeds."
)

SEEDS, SIGMAS, EPOCHS, ROWS, COPIES = 2, (0.125, 0.25, 0.5), 40, 100, 1000
WAYS = ("plain", "dual")


def measure() -> Measurement:
    found = {(way, sigma): [_scores(way, sigma, seed) for seed in range(SEEDS)] for way in WAYS for sigma in SIGMAS}
    means = {key: {part: mean(run[part] for run in runs) for part in runs[0]} for key, runs in found.items()}
    best = {way: max(means[way, sigma]["average radius"] for sigma in SIGMAS) for way in WAYS}
    further = all(means["dual", s]["largest radius"] > means["plain", s]["largest radius"] for s in SIGMAS)
    return Measurement(
        shown=further and best["dual"] > best["plain"],
        measured="average certified radius (largest; accuracy): "
        + ", ".join(
            f"{own['average radius']:.3f} ({own['largest radius']:.3f}; {own['accuracy']:.3f}) {way} at {sigma:g}"
            for (way, sigma), own in means.items()
        ),
        numbers={
            f"{part}, {way} at {sigma:g}": [run[part] for run in runs]
            for (way, sigma), runs in found.items()
            for part in runs[0]
        },
        seeds=SEEDS,
    )


def _scores(way: str, sigma: float, seed: int) -> dict[str, float]:
    """Of the first test rows: the share certified right, and the radius, 0 where that is wrong."""
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    white = checkerboard_split(8, 8).flatten()
    if way == "plain":
        whole = _trained(data.x, data.y, torch.ones_like(white), sigma, seed)
        found = RandomizedSmoothing(whole, sigma, generator=draw).certify(data.x_test[:ROWS], n=COPIES)
    else:
        first, second = (_trained(data.x, data.y, half, sigma, seed) for half in (white, ~white))
        dual = DualRandomizedSmoothing(first, second, white, sigma, generator=draw)
        found = dual.certify(data.x_test[:ROWS], n=COPIES)
    right = found.answer == data.y_test[:ROWS]
    radius = torch.where(right, found.radius, 0)
    return {
        "average radius": float(radius.mean()),
        "largest radius": float(radius.max()),
        "accuracy": float(right.double().mean()),
    }


class _Noisy(nn.Module):
    """A network that in training sees some pixels under noise, and none of the others."""

    def __init__(self, kept: Tensor, sigma: float, seed: int) -> None:
        super().__init__()
        self.kept, self.sigma = kept, sigma
        self.draw = torch.Generator().manual_seed(seed)
        self.rest = mlp(64, 128, 64, 10, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        if self.training:
            noise = torch.randn(x.shape, generator=self.draw)
            x = torch.where(self.kept, x + self.sigma * noise, 0)
        return self.rest(x)


def _trained(x: Tensor, y: Tensor, kept: Tensor, sigma: float, seed: int) -> nn.Module:
    model = _Noisy(kept, sigma, seed)
    adam = partial(torch.optim.Adam, lr=3e-3)
    fit(model, CrossEntropyLoss(), x, y, optimizer=adam, epochs=EPOCHS, seed=seed)
    return model.eval()
