"""ZO-AE-DS: a denoiser trained by answers alone, through a code of few coordinates or through the input itself."""

from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from claims.record import Measurement
from claims.training import accuracy, fit, images, mlp, outputs
from lossworks.certify import RandomizedSmoothing
from lossworks.losses import CrossEntropyLoss
from lossworks.objectives import DenoisedSmoothingObjective

PAPER = "zhang2022blackbox"
RULE = (
    "On digits scaled to [0, 1] with noise of 0.35, at about 24 queries a row and step: accuracy on noisy test rows is "
    "higher with a denoiser trained through codes of 12 numbers (ZO-AE-DS, by coordinates) than with one trained "
    "through the 64 pixels (ZO-DS, random directions), and there higher than without one; and so is the average "
    "certified radius; means of 3 seeds."
)

SEEDS, SIGMA, CODE, QUERIES, STEPS, BATCH = 3, 0.35, 12, 23, 250, 128
CERTIFIED, COPIES = 100, 500
WAYS = {"none": None, "ZO-DS": "rge", "ZO-AE-DS by directions": "rge", "ZO-AE-DS": "cge", "first order": None}


def measure() -> Measurement:
    runs = [_scores(seed) for seed in range(SEEDS)]
    found = {name: [run[name] for run in runs] for name in WAYS}
    right, radius = ({name: mean(run[part] for run in each) for name, each in found.items()} for part in (0, 1))
    return Measurement(
        shown=all(by["ZO-AE-DS"] > by["ZO-DS"] > by["none"] for by in (right, radius)),
        measured="accuracy on noisy rows (average certified radius): "
        + ", ".join(f"{right[name]:.3f} ({radius[name]:.3f}) {name}" for name in WAYS),
        numbers={
            **{f"accuracy on noisy rows, {name}": [run[0] for run in each] for name, each in found.items()},
            **{f"average certified radius, {name}": [run[1] for run in each] for name, each in found.items()},
        },
        seeds=SEEDS,
    )


class _Residual(nn.Module):
    """A denoiser that says what to add."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.change = mlp(64, 64, 64, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """The input without its noise."""
        return x + self.change(x)


def _scores(seed: int) -> dict[str, tuple[float, float]]:
    """Accuracy on noisy test rows and average certified radius, each way."""
    data = images(seed=seed)
    adam = partial(torch.optim.Adam, lr=3e-3)
    box, encoder, decoder = mlp(64, 64, 10, seed=seed), mlp(64, 48, CODE, seed=seed), mlp(CODE, 48, 64, seed=seed)
    fit(box, CrossEntropyLoss(), data.x, data.y, optimizer=adam, epochs=40, seed=seed)
    autoencoder = nn.Sequential(encoder, decoder)
    fit(autoencoder, lambda made, x, index: mse_loss(made, x), data.x, data.x, optimizer=adam, epochs=60, seed=seed)
    scores = {}
    for name, method in WAYS.items():
        coded = name.startswith("ZO-AE")
        draw = torch.Generator().manual_seed(seed)
        objective = DenoisedSmoothingObjective(
            box, SIGMA, decoder if coded else None, method=method or "rge", q=QUERIES, generator=draw
        )
        denoiser = nn.Identity() if name == "none" else _Residual(seed)
        model = nn.Sequential(denoiser, *([mlp(64, 48, CODE, seed=seed)] if coded else []))
        if coded:
            model[1].load_state_dict(encoder.state_dict())
        if name != "none":
            _train(model, objective, box if name == "first order" else None, data.x, draw)
        defended = partial(objective.logits, model.eval())
        noise = torch.randn(data.x_test.shape, generator=torch.Generator().manual_seed(1000 + seed))
        noisy = data.x_test + SIGMA * noise
        smoothed = RandomizedSmoothing(defended, SIGMA, generator=torch.Generator().manual_seed(2000 + seed))
        answer, radius = smoothed.certify(data.x_test[:CERTIFIED], n0=50, n=COPIES)
        certified = torch.where(answer == data.y_test[:CERTIFIED], radius, 0)
        scores[name] = accuracy(defended(noisy), data.y_test), float(certified.mean())
    return scores


def _train(
    model: nn.Module, objective: DenoisedSmoothingObjective, inside: nn.Module | None, x: Tensor, draw: torch.Generator
) -> None:
    """Train in place by answers, or through the classifier where its inside is at hand."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        rows = x[torch.randint(len(x), (BATCH,), generator=draw)]
        adam.zero_grad()
        if inside is None:
            value = objective(model, rows, torch.zeros(BATCH, dtype=torch.int64))
        else:
            noisy = rows + SIGMA * torch.randn(rows.shape, generator=draw)
            value = cross_entropy(inside(model(noisy)), outputs(inside, rows).argmax(dim=1))
        value.backward()
        adam.step()
