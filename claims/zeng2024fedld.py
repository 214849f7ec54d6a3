"""The margin loss and the principal directions, against federated averaging on clients whose classes differ."""

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor

from claims.record import Measurement
from claims.training import accuracy, digits, mlp, outputs
from lossworks.federated import FederatedAdversarialTrainer, principal_gradient_aggregate
from lossworks.federated.rounds import Client
from lossworks.losses import CrossEntropyLoss, MarginControlLoss

PAPER = "zeng2024fedld"
RULE = (
    "Digits on 5 clients with class shares from a Dirichlet distribution of 0.1, 25 rounds of about two local epochs: "
    "with the margin loss and the principal directions the test accuracy is above federated averaging's, mean of 3 "
    "seeds."
)

SEEDS, CLIENTS, ROUNDS, STEPS, BATCH, RATE = 3, 5, 25, 12, 32, 0.1
SKEWS = (0.1, 1.0)
WAYS = {
    "averaging": (CrossEntropyLoss, None),
    "margin": (MarginControlLoss, None),
    "directions": (CrossEntropyLoss, principal_gradient_aggregate),
    "both": (MarginControlLoss, principal_gradient_aggregate),
}


def measure() -> Measurement:
    found = {(skew, name): [_accuracy(name, skew, seed) for seed in range(SEEDS)] for skew in SKEWS for name in WAYS}
    means = {key: mean(values) for key, values in found.items()}
    return Measurement(
        shown=means[SKEWS[0], "both"] > means[SKEWS[0], "averaging"],
        measured="accuracy at skew 0.1 (1.0): "
        + ", ".join(f"{means[0.1, name]:.3f} ({means[1.0, name]:.3f}) {name}" for name in WAYS),
        numbers={f"accuracy at skew {skew}, {name}": values for (skew, name), values in found.items()},
        seeds=SEEDS,
    )


def _accuracy(name: str, skew: float, seed: int) -> float:
    data, draw = digits(seed=seed), torch.Generator().manual_seed(seed)
    clients: Sequence[Client] = [(data.x[rows], data.y[rows]) for rows in _owned(data.y, skew, seed)]
    loss, aggregate = WAYS[name]
    model = mlp(64, 64, 10, seed=seed)
    trainer = FederatedAdversarialTrainer(
        model,
        loss(),
        local_steps=STEPS,
        lr_local=RATE,
        batch_size=BATCH,
        generator=draw,
        aggregate=aggregate,
        weights="uniform" if aggregate else "size",
    )
    for _ in range(ROUNDS):
        trainer.round(clients)
    return accuracy(outputs(model, data.x_test), data.y_test)


def _owned(target: Tensor, skew: float, seed: int) -> list[Tensor]:
    """Each client's rows: every class is shared out by a draw of its own; a client without rows is given one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shares = torch.distributions.Dirichlet(torch.full((CLIENTS,), skew, dtype=torch.float64)).sample((10,))
        owners = torch.multinomial(shares[target], 1).flatten()
    return [rows if len(rows := (owners == c).nonzero().flatten()) else torch.tensor([c]) for c in range(CLIENTS)]
