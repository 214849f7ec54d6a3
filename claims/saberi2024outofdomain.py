"""RSS: unlabelled rows from a shifted source make a linear classifier with ten labels better."""

from statistics import mean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from claims.record import Measurement
from lossworks.objectives import ramp_loss

PAPER = "saberi2024outofdomain"
RULE = (
    "Two unit Gaussians in 200 dimensions, 2 apart, 10 labelled rows: with 10,000 unlabelled rows whose mean is "
    "shifted by 0.5 in some direction the linear classifier's accuracy is at least 0.1 higher than from the labelled "
    "rows alone; means of 3 seeds."
)

SEEDS, DIMENSIONS, LABELLED, GAMMA, STEPS = 3, 200, 10, 0.4, 400


def measure() -> Measurement:
    runs = {
        "labelled rows alone": [_accuracy(0, 0.0, seed) for seed in range(SEEDS)],
        "1,000 unlabelled": [_accuracy(1000, 0.5, seed) for seed in range(SEEDS)],
        "10,000 unlabelled": [_accuracy(10_000, 0.5, seed) for seed in range(SEEDS)],
        "10,000 not shifted": [_accuracy(10_000, 0.0, seed) for seed in range(SEEDS)],
    }
    means = {name: mean(values) for name, values in runs.items()}
    return Measurement(
        shown=means["10,000 unlabelled"] >= means["labelled rows alone"] + 0.1,
        measured="accuracy " + ", ".join(f"{value:.3f} {name}" for name, value in means.items()),
        numbers={f"accuracy, {name}": values for name, values in runs.items()},
        seeds=SEEDS,
    )


def _accuracy(unlabelled: int, shift: float, seed: int) -> float:
    """The exact accuracy of the classifier that was trained."""
    draw = torch.Generator().manual_seed(seed)
    mu, direction = normalize(torch.randn(2, DIMENSIONS, generator=draw), dim=1)

    def rows(n: int, centre: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (n,), generator=draw).float() * 2 - 1
        return y[:, None] * mu + centre + torch.randn(n, DIMENSIONS, generator=draw), y

    x, y = rows(LABELLED, torch.zeros(DIMENSIONS))
    others, _ = rows(unlabelled, shift * direction)
    theta = normalize((y[:, None] * x).mean(0), dim=0).requires_grad_()
    step = torch.optim.Adam([theta], lr=0.02)
    for _ in range(STEPS):
        unit = normalize(theta, dim=0)
        risk = ramp_loss(y * (x @ unit), GAMMA).mean()
        if unlabelled:
            risk = risk + ramp_loss((others @ unit).abs(), GAMMA).mean()
        step.zero_grad()
        risk.backward()
        step.step()
    return float(torch.special.ndtr(normalize(theta.detach(), dim=0) @ mu))
