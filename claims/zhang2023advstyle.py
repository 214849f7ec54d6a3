"""AdvStyle: style noise that is learned against the model helps it on images of other contrast and brightness."""

from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claims.record import Measurement
from claims.training import accuracy, images, outputs
from lossworks.perturb import AdvStyle, DSUStyle, adversarial_style_step

PAPER = "zhang2023advstyle"
RULE = (
    "Convolutional networks trained on clean digits, tested on five shifts of contrast, brightness and noise: the mean "
    "accuracy over the shifts and 3 seeds is higher with AdvStyle than without any style layer."
)

SEEDS, EPOCHS, LARGEST = 3, 15, 3.0
SHIFTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "contrast": lambda x, _: 0.4 * x,
    "contrast and brightness": lambda x, _: 0.4 * x + 0.4,
    "brightness": lambda x, _: x + 0.5,
    "inversion": lambda x, _: 1 - x,
    "noise": lambda x, draw: x + 0.3 * torch.randn(x.shape, generator=draw),
}


def measure() -> Measurement:
    found = {name: [_scores(name, seed) for seed in range(SEEDS)] for name in ("none", "DSUStyle", "AdvStyle")}
    shifted = {name: [mean(scores[shift] for shift in SHIFTS) for scores in runs] for name, runs in found.items()}
    means = {name: mean(values) for name, values in shifted.items()}
    return Measurement(
        shown=means["AdvStyle"] > means["none"],
        measured="accuracy under the shifts " + ", ".join(f"{value:.3f} {name}" for name, value in means.items()),
        numbers={
            **{f"accuracy under the shifts, {name}": values for name, values in shifted.items()},
            **{f"clean accuracy, {name}": [scores["clean"] for scores in runs] for name, runs in found.items()},
        },
        seeds=SEEDS,
    )


def _scores(name: str, seed: int) -> dict[str, float]:
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    x, x_test = (rows.view(-1, 1, 8, 8) for rows in (data.x, data.x_test))
    model = _network(name, seed)
    _train(model, x, data.y, draw)
    shifts: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"clean": lambda x, _: x, **SHIFTS}
    return {name: accuracy(outputs(model, shift(x_test, draw)), data.y_test) for name, shift in shifts.items()}


def _network(name: str, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)

    def style(channels: int) -> nn.Module:
        made: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "DSUStyle": lambda: DSUStyle(generator=draw),
            "AdvStyle": lambda: AdvStyle(channels, generator=draw),
        }
        return made[name]()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), style(16), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), style(32), nn.Flatten(), nn.Linear(512, 10)),
        )


def _train(model: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> None:
    scales = [
        s for layer in model.modules() if isinstance(layer, AdvStyle) for s in (layer.mean_scale, layer.std_scale)
    ]
    fixed = {id(scale) for scale in scales}
    step = torch.optim.Adam([p for p in model.parameters() if id(p) not in fixed], lr=2e-3)
    ascent = torch.optim.SGD(scales, lr=0.1) if scales else None
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=draw).split(64):
            if ascent is not None:
                adversarial_style_step(model, _surprise(y[rows]), x[rows], ascent, largest=LARGEST)
            step.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            step.step()


def _surprise(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda output: cross_entropy(output, target)
