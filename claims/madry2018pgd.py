"""PGD: training on the inputs that it finds makes a network withstand it."""

from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claims.record import Measurement
from claims.training import accuracy, images, mlp, outputs
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.perturb import PGD

PAPER = "madry2018pgd"
RULE = (
    "On digits scaled to [0, 1], for each of 3 seeds: accuracy under attack (PGD, linf 0.1, 20 steps, 5 restarts) is "
    "at least 0.25 higher for the network trained on PGD's inputs than for the one trained on the clean ones."
)

SEEDS, EPOCHS, RADIUS = 3, 40, 0.1


def measure() -> Measurement:
    scores = {name: [_scores(name == "PGD", seed) for seed in range(SEEDS)] for name in ("clean", "PGD")}
    robust = {name: [under for _, under in found] for name, found in scores.items()}
    gains = [trained - plain for trained, plain in zip(robust["PGD"], robust["clean"], strict=True)]
    return Measurement(
        shown=min(gains) >= 0.25,
        measured=", ".join(
            f"{mean(under):.3f} under attack and {mean(clean for clean, _ in scores[name]):.3f} clean, trained {how}"
            for name, under, how in (("PGD", robust["PGD"], "on PGD"), ("clean", robust["clean"], "on clean inputs"))
        ),
        numbers={
            **{f"accuracy under attack, {name}": values for name, values in robust.items()},
            **{f"clean accuracy, {name}": [clean for clean, _ in found] for name, found in scores.items()},
        },
        seeds=SEEDS,
    )


def _scores(attacked: bool, seed: int) -> tuple[float, float]:
    """Accuracy on clean test images and under attack."""
    data = images(seed=seed)
    model = mlp(64, 64, 64, 10, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    attack = PGD(RADIUS, steps=7, bounds=(0.0, 1.0), generator=draw) if attacked else None
    train(model, Objective(CrossEntropyLoss(), perturb=attack), data.x, data.y, draw)
    worst = PGD(RADIUS, steps=20, restarts=5, bounds=(0.0, 1.0), generator=draw)
    found = worst(lambda x: cross_entropy(model(x), data.y_test, reduction="none"), data.x_test)
    return accuracy(outputs(model, data.x_test), data.y_test), accuracy(outputs(model, found), data.y_test)


def train(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, draw: torch.Generator) -> None:
    """Train in place, rows shuffled in each epoch."""
    step = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=draw).split(64):
            step.zero_grad()
            objective(model, x[rows], y[rows]).backward()
            step.step()
    model.eval()
