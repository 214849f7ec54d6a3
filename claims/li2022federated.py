"""Federated adversarial learning: rounds of local adversarial steps withstand more than federated averaging."""

from statistics import mean

import torch
from torch.nn.functional import cross_entropy

from claims.record import Measurement
from claims.training import accuracy, images, mlp, outputs
from lossworks.federated import FederatedAdversarialTrainer
from lossworks.federated.rounds import Client
from lossworks.losses import CrossEntropyLoss
from lossworks.perturb import PGD

PAPER = "li2022federated"
RULE = (
    "Digits scaled to [0, 1] on 4 clients of 5 classes each, 40 rounds of 5 local steps: the test loss under attack "
    "(PGD, linf 0.05, 20 steps) ends below 0.4 times what it was before training, and below that of federated "
    "averaging, for each of 3 seeds."
)

SEEDS, CLIENTS, ROUNDS, RADIUS, RATE = 3, 4, 40, 0.05, 0.5
CLASSES = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (0, 2, 4, 6, 8), (1, 3, 5, 7, 9))


def measure() -> Measurement:
    found = {name: [_scores(name, seed) for seed in range(SEEDS)] for name in ("averaging", "adversarial")}
    losses = {name: [scores["loss"] for scores in runs] for name, runs in found.items()}
    starts = [scores["start"] for scores in found["adversarial"]]
    rows = zip(losses["adversarial"], losses["averaging"], starts, strict=True)
    return Measurement(
        shown=all(own < 0.4 * start and own < other for own, other, start in rows),
        measured=f"loss under attack {mean(starts):.3f} before, "
        + ", ".join(f"{mean(values):.3f} {name}" for name, values in losses.items()),
        numbers={
            "loss under attack, before": starts,
            **{f"loss under attack, {name}": values for name, values in losses.items()},
            **{f"accuracy under attack, {name}": [s["robust"] for s in runs] for name, runs in found.items()},
            **{f"clean accuracy, {name}": [s["clean"] for s in runs] for name, runs in found.items()},
        },
        seeds=SEEDS,
    )


def _scores(name: str, seed: int) -> dict[str, float]:
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    # A class's rows go in turn to the two clients that have it.
    turn = torch.stack([(data.y[:i] == y).sum() for i, y in enumerate(data.y)]) % 2
    owners = torch.tensor([[c for c in range(CLIENTS) if y in CLASSES[c]] for y in range(10)])[data.y, turn]
    clients: list[Client] = [(data.x[owners == c], data.y[owners == c]) for c in range(CLIENTS)]
    model = mlp(64, 64, 10, seed=seed)
    worst = PGD(RADIUS, steps=20, bounds=(0.0, 1.0), generator=draw)

    def risk(x: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(x), data.y_test, reduction="none")

    start = float(risk(worst(risk, data.x_test)).mean())
    attack = PGD(RADIUS, steps=5, bounds=(0.0, 1.0), generator=draw) if name == "adversarial" else None
    trainer = FederatedAdversarialTrainer(model, CrossEntropyLoss(), attack, local_steps=5, lr_local=RATE)
    for _ in range(ROUNDS):
        trainer.round(clients)
    found = worst(risk, data.x_test)
    return {
        "start": start,
        "loss": float(risk(found).mean()),
        "robust": accuracy(outputs(model, found), data.y_test),
        "clean": accuracy(outputs(model, data.x_test), data.y_test),
    }
