"""Consistency between noisy copies: a network trained with it is certified further by smoothing."""

from statistics import mean

import torch

from claims.madry2018pgd import train
from claims.record import Measurement
from claims.training import images, mlp
from lossworks.certify import RandomizedSmoothing
from lossworks.objectives import NoiseConsistencyObjective

PAPER = "jeong2020consistency"
RULE = (
    "Digits scaled to [0, 1], a network of 128 hidden units trained for 40 epochs on two copies of each row with noise "
    "0.5, certified on 150 test rows by 500 copies: the average radius, 0 where the answer is wrong or withheld, is "
    "higher with lam 5 and eta 0.5 than with both 0, mean of 3 seeds."
)

SEEDS, SIGMA, ROWS, COPIES = 3, 0.5, 150, 500
PRICES = {"cross-entropy": (0.0, 0.0), "lam 2": (2.0, 0.5), "lam 5": (5.0, 0.5), "lam 10": (10.0, 0.5)}


def measure() -> Measurement:
    found = {name: [_scores(*prices, seed) for seed in range(SEEDS)] for name, prices in PRICES.items()}
    radius, right = ({name: [run[side] for run in runs] for name, runs in found.items()} for side in (0, 1))
    return Measurement(
        shown=mean(radius["lam 5"]) > mean(radius["cross-entropy"]),
        measured="average certified radius / certified accuracy at 0: "
        + ", ".join(f"{mean(radius[name]):.3f} / {mean(right[name]):.3f} {name}" for name in found),
        numbers={
            **{f"average certified radius, {name}": values for name, values in radius.items()},
            **{f"certified accuracy at 0, {name}": values for name, values in right.items()},
        },
        seeds=SEEDS,
    )


def _scores(lam: float, eta: float, seed: int) -> tuple[float, float]:
    """The average certified radius and the share of rows that are certified at all."""
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    model = mlp(64, 128, 10, seed=seed)
    train(model, NoiseConsistencyObjective(SIGMA, lam=lam, eta=eta, generator=draw), data.x, data.y, draw)
    x, y = data.x_test[:ROWS], data.y_test[:ROWS]
    found = RandomizedSmoothing(model, SIGMA, generator=draw).certify(x, n=COPIES)
    right = found.answer == y
    return float(torch.where(right, found.radius, 0.0).mean()), float(right.double().mean())
