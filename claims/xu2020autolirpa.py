"""Certified training: a network whose accuracy can be proved, where a plainly trained one proves nothing."""

import time
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claims.record import Measurement
from claims.training import accuracy, images, mlp, outputs
from lossworks.certify import (
    SmoothedEpsilonSchedule,
    certified_cross_entropy,
    crown_bounds,
    fused_certified_cross_entropy,
    interval_bounds,
    margin_spec,
    verified,
)
from lossworks.perturb import PGD

PAPER = "xu2020autolirpa"
RULE = (
    "Digits scaled to [0, 1], linf 0.06: the accuracy that crown_bounds verify of a network trained by the certified "
    "cross-entropy is above 0.5 and that of a plainly trained one below 0.2, for each of 2 seeds, and none is above "
    "the accuracy under PGD; and the fused loss of 100 classes takes less than half the time of bounding each margin."
)

SEEDS, EPOCHS, RADIUS, CLASSES = 2, 40, 0.06, 100


def measure() -> Measurement:
    found = {name: [_scores(name, seed) for seed in range(SEEDS)] for name in ("plain", "certified", "fused")}
    sound = all(scores["verified"] <= scores["attacked"] for runs in found.values() for scores in runs)
    proved = {name: [scores["verified"] for scores in runs] for name, runs in found.items()}
    share = _time_share()
    return Measurement(
        shown=min(proved["certified"]) > 0.5 and max(proved["plain"]) < 0.2 and sound and share < 0.5,
        measured="verified accuracy (by intervals alone, under attack, clean): "
        + ", ".join(
            f"{mean(proved[name]):.3f} "
            f"({', '.join(format(mean(s[part] for s in runs), '.3f') for part in ('intervals', 'attacked', 'clean'))}) "
            f"{name}"
            for name, runs in found.items()
        )
        + f"; the fused loss takes {share:.2f} of the time with {CLASSES} classes",
        numbers={
            **{f"verified accuracy, {name}": values for name, values in proved.items()},
            **{f"verified by intervals, {name}": [s["intervals"] for s in runs] for name, runs in found.items()},
            **{f"accuracy under attack, {name}": [s["attacked"] for s in runs] for name, runs in found.items()},
            **{f"clean accuracy, {name}": [s["clean"] for s in runs] for name, runs in found.items()},
            "time of the fused loss, share": share,
        },
        seeds=SEEDS,
    )


def _scores(name: str, seed: int) -> dict[str, float]:
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    model = mlp(64, 64, 64, 10, seed=seed)
    schedule = SmoothedEpsilonSchedule(RADIUS, end=0.6)
    step = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(EPOCHS):
        eps = schedule(epoch / (EPOCHS - 1))
        for rows in torch.randperm(len(data.x), generator=draw).split(64):
            x, y = data.x[rows], data.y[rows]
            box = ((x - eps).clamp(min=0.0), (x + eps).clamp(max=1.0))
            step.zero_grad()
            if name == "plain":
                loss = cross_entropy(model(x), y)
            elif name == "fused":
                loss = fused_certified_cross_entropy(model, x, y, eps, box=box).mean()
            else:
                loss = certified_cross_entropy(model, x, y, eps, kappa=1 - eps / RADIUS, box=box).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            step.step()
    x, y = data.x_test, data.y_test
    box = ((x - RADIUS).clamp(min=0.0), (x + RADIUS).clamp(max=1.0))
    attack = PGD(RADIUS, steps=20, restarts=3, bounds=(0.0, 1.0), generator=draw)
    found = attack(lambda z: cross_entropy(model(z), y, reduction="none"), x)
    return {
        "verified": float(verified(model, x, y, RADIUS, box=box).double().mean()),
        "intervals": _by_intervals(model, x, y, box),
        "attacked": accuracy(outputs(model, found), y),
        "clean": accuracy(outputs(model, x), y),
    }


def _by_intervals(model: nn.Module, x: Tensor, y: Tensor, box: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        low, high = interval_bounds(model, x, RADIUS, box=box)
    own = nn.functional.one_hot(y, low.shape[1]).bool()
    sure = low.gather(1, y[:, None]) > torch.where(own, -torch.inf, high)
    return float((sure | own).all(dim=1).double().mean())


def _time_share() -> float:
    model = mlp(64, 128, 128, CLASSES, seed=0)
    x, y = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % CLASSES
    spec = margin_spec(y, CLASSES)
    ratios = []
    for _ in range(7):
        begun = time.perf_counter()
        fused_certified_cross_entropy(model, x, y, RADIUS).mean().backward()
        between = time.perf_counter()
        low, _ = crown_bounds(model, x, RADIUS, spec=spec, method="crown-ibp", upper=False)
        torch.cat([torch.zeros_like(low[:, :1]), -low], dim=1).logsumexp(dim=1).mean().backward()
        ratios.append((between - begun) / (time.perf_counter() - between))
    return median(ratios)
