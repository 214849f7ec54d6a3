"""One-step samples of a consistency model, trained as first proposed and as improved, on eight Gaussians."""

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from claims.record import Measurement
from claims.training import mlp
from lossworks.losses import PseudoHuberLoss

PAPER = "song2023ict"
RULE = (
    "The mean sliced Wasserstein distance of iCT's one-step samples is below half that of plain consistency training."
)

SEEDS = 3
STEPS = 1500
BATCH = 256
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80.0, 0.5

Distance = Callable[[Tensor, Tensor], Tensor]


def measure() -> Measurement:
    huber, squared = PseudoHuberLoss(reduction="none"), _squared
    recipes = {
        "plain": lambda seed: _train_plain(squared, seed),
        "improved": lambda seed: _train_improved(huber, seed),
        "improved_with_squares": lambda seed: _train_improved(squared, seed),
    }
    distances = {
        name: [_sample_distance(train(seed), seed) for seed in range(SEEDS)] for name, train in recipes.items()
    }
    means = {name: sum(values) / SEEDS for name, values in distances.items()}
    return Measurement(
        shown=means["improved"] < means["plain"] / 2,
        measured=f"Sliced Wasserstein-1 distance of one-step samples: iCT {means['improved']:.3f}, plain consistency "
        f"training {means['plain']:.3f}, iCT with squares for pseudo-Huber {means['improved_with_squares']:.3f}.",
        numbers={**distances},
        seeds=SEEDS,
    )


class _Consistency(nn.Module):
    """The network between its skip and output scalings, so that the noise-free end is the identity."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = mlp(3, 96, 96, 2, seed=seed)

    def forward(self, x: Float[Tensor, "n 2"], sigma: Float[Tensor, "n 1"]) -> Float[Tensor, "n 2"]:
        above, total = sigma - SIGMA_MIN, (sigma.square() + SIGMA_DATA**2).sqrt()
        skip = SIGMA_DATA**2 / (above.square() + SIGMA_DATA**2)
        return skip * x + SIGMA_DATA * above / total * self.net(torch.cat([x / total, sigma.log() / 4], dim=1))


def _train_plain(distance: Distance, seed: int) -> nn.Module:
    """Consistency training as first proposed: squares, levels drawn evenly, 2 to 150 of them, an averaged teacher."""
    generator = torch.Generator().manual_seed(seed)
    student = _Consistency(seed)
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.RAdam(student.parameters(), lr=2e-3)
    for step in range(STEPS):
        levels = math.ceil(math.sqrt(step / STEPS * (151**2 - 2**2) + 2**2) - 1) + 1
        sigmas = _sigmas(levels)
        index = torch.randint(len(sigmas) - 1, (BATCH,), generator=generator)
        _step(student, teacher, optimizer, distance, sigmas, index, torch.ones(BATCH), generator)
        _average(teacher, student, math.exp(2 * math.log(0.9) / levels))
    return teacher


def _train_improved(distance: Distance, seed: int) -> nn.Module:
    """iCT: the student teaches, levels are lognormal and double from 10 to 1280, and near pairs weigh more."""
    generator = torch.Generator().manual_seed(seed)
    student = _Consistency(seed)
    averaged = copy.deepcopy(student)
    optimizer = torch.optim.RAdam(student.parameters(), lr=2e-3)
    for step in range(STEPS):
        sigmas = _sigmas(min(10 * 2 ** (step // (STEPS // 8)), 1280) + 1)
        mass = torch.erf((sigmas.log() + 1.1) / (2 * math.sqrt(2))).diff()
        index = torch.multinomial(mass, BATCH, replacement=True, generator=generator)
        _step(student, student, optimizer, distance, sigmas, index, 1 / sigmas.diff()[index], generator)
        _average(averaged, student, 0.99)
    return averaged


def _step(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    distance: Distance,
    sigmas: Float[Tensor, " levels"],
    index: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    generator: torch.Generator,
) -> None:
    """Move the student's answer at the noisier of two neighbouring levels towards the teacher's at the other."""
    x, noise = _data(BATCH, generator), torch.randn(BATCH, 2, generator=generator)
    low, high = sigmas[index, None], sigmas[index + 1, None]
    with torch.no_grad():
        target = teacher(x + low * noise, low)
    optimizer.zero_grad()
    (weight * distance(student(x + high * noise, high), target)).mean().backward()
    optimizer.step()


def _sample_distance(model: nn.Module, seed: int) -> float:
    """The sliced Wasserstein-1 distance between 2,000 one-step samples and 2,000 data points."""
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        samples = model(SIGMA_MAX * torch.randn(2000, 2, generator=generator), torch.full((2000, 1), SIGMA_MAX))
    angle = math.pi * torch.arange(64) / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    sliced, real = ((points @ directions).sort(dim=0).values for points in (samples, _data(2000, generator)))
    return float((sliced - real).abs().mean())


def _data(n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
    """Eight narrow Gaussians on a circle, half a unit of deviation a coordinate in all."""
    angle = 2 * math.pi * torch.randint(8, (n,), generator=generator) / 8
    return 0.7 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(n, 2, generator=generator)


def _sigmas(levels: int) -> Float[Tensor, " levels"]:
    low, high = SIGMA_MIN ** (1 / 7), SIGMA_MAX ** (1 / 7)
    return (low + torch.linspace(0, 1, levels) * (high - low)) ** 7


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(dim=1)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
