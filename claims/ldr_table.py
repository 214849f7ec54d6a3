"""The LDR paper's table in small: its 13 losses and its own two, on three data sets with clean and with noisy labels.

As in the paper, each loss has its authors' grid of settings, the setting is chosen by the accuracy on held-out rows
that are as noisy as the training rows, test labels are clean, and the losses are ranked by their mean rank. Every
model has the same number of steps, and its last state is taken: no clean label is looked at before the test.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor

from claims.kept import check_place, read, write
from claims.training import accuracy
from lossworks.checks import check_positive
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.train.engine import train
from lossworks.comparison.train.jobs import Job, Training
from lossworks.losses import (
    ActivePassiveLoss,
    AdaptiveLDRLoss,
    AsymmetricGeneralizedCrossEntropyLoss,
    AsymmetricUnhingedLoss,
    BrierLoss,
    CrammerSingerLoss,
    CrossEntropyLoss,
    GeneralizedCrossEntropyLoss,
    JensenShannonLoss,
    LDRLoss,
    MeanAbsoluteErrorLoss,
    NormalizedCrossEntropyLoss,
    ReverseCrossEntropyLoss,
    SymmetricCrossEntropyLoss,
    TruncatedGeneralizedCrossEntropyLoss,
    WestonWatkinsLoss,
)
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective
from lossworks.roles import Loss

__all__ = [
    "CANDIDATES",
    "RULE",
    "Candidate",
    "RobustLogLoss",
    "Task",
    "make_task",
    "measure",
    "mislabel",
    "rank",
    "results",
    "run",
]

KEPT = Path(__file__).with_name("ldr_table.json")
RULE = "The adaptive LDR loss is among the five best of the fifteen by mean rank over the twelve tasks."
PROPOSED = ("ALDR-KL", "LDR-KL")
SEEDS = 5
STEPS = 600
WIDTH = 64
DATA: Mapping[str, Callable[..., Any]] = {"digits": load_digits, "breast_cancer": load_breast_cancer, "wine": load_wine}
NOISE: Mapping[str, tuple[str, float]] = {
    "clean": ("symmetric", 0.0),
    "symmetric 30%": ("symmetric", 0.3),
    "symmetric 60%": ("symmetric", 0.6),
    "asymmetric 30%": ("asymmetric", 0.3),
}


class RobustLogLoss(Loss):
    r"""The paper's one baseline that is no part of the library: symmetric, and so indifferent to uniform noise.

    .. math::
        \ell(z, y) = -\log(a + p_y) + \frac{1}{C - 1} \sum_{k \ne y} \log(a + p_k), \qquad p = \mathrm{softmax}(z)
    """

    rowwise = True

    def __init__(self, a: float | Tensor = 1.0, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.a = check_positive("a", a)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        logs = torch.log(self.a + output.softmax(dim=1))
        own = logs.gather(1, target[:, None]).squeeze(1)
        return (logs.sum(dim=1) - own) / (output.shape[1] - 1) - own


@dataclass(frozen=True)
class Candidate:
    """A loss of the table: how it is built from one number and the rows of the data, and the numbers that are tried."""

    build: Callable[[Tensor, int], Loss]
    grid: tuple[float, ...] = (0.0,)
    meaning: str = ""


def _pair(passive: Callable[[], Loss]) -> Candidate:
    def build(alpha: Tensor, _rows: int) -> Loss:
        return ActivePassiveLoss(NormalizedCrossEntropyLoss(), passive(), alpha=alpha, beta=10 - alpha)

    return Candidate(build, (0.1, 5.0, 9.9), "alpha, with beta = 10 - alpha")


CANDIDATES: Mapping[str, Candidate] = {
    "ALDR-KL": Candidate(lambda lam, rows: AdaptiveLDRLoss(rows, lam0=lam), (0.1, 1.0, 10.0), "lam0"),
    "LDR-KL": Candidate(lambda lam, _: LDRLoss(lam, normalize="softplus_mean"), (0.1, 1.0, 10.0), "lam"),
    "CE": Candidate(lambda _, __: CrossEntropyLoss()),
    "SCE": Candidate(
        lambda b, _: SymmetricCrossEntropyLoss(1 - b, b), (0.05, 0.5, 0.95), "beta, with alpha = 1 - beta"
    ),
    "GCE": Candidate(lambda q, _: GeneralizedCrossEntropyLoss(q), (0.05, 0.7, 0.95), "q"),
    "TGCE": Candidate(
        lambda q, _: TruncatedGeneralizedCrossEntropyLoss(q, k=0.5, warmup=0.5), (0.05, 0.7, 0.95), "q, with k = 0.5"
    ),
    "WW": Candidate(lambda margin, _: WestonWatkinsLoss(margin), (0.1, 1.0, 10.0), "margin"),
    "JS": Candidate(lambda pi, _: JensenShannonLoss(pi), (0.1, 0.5, 0.9), "pi"),
    "CS": Candidate(lambda margin, _: CrammerSingerLoss(margin), (0.1, 1.0, 10.0), "margin"),
    "RLL": Candidate(lambda a, _: RobustLogLoss(a), (0.1, 1.0, 10.0), "a"),
    "NCE+RCE": _pair(lambda: ReverseCrossEntropyLoss(log_clip=float(np.log(1e-4)))),
    "NCE+AUL": _pair(lambda: AsymmetricUnhingedLoss(a=6.0, p=1.5)),
    "NCE+AGCE": _pair(lambda: AsymmetricGeneralizedCrossEntropyLoss(a=3.0, q=1.5)),
    "MSE": Candidate(lambda _, __: BrierLoss()),
    "MAE": Candidate(lambda _, __: MeanAbsoluteErrorLoss()),
}
"""The paper's two and the thirteen, with the grids that the authors' code tries."""


class _Latest:
    """A score that rises from look to look, so that the engine keeps each model's last state and stops none early."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        self.looks += 1
        return torch.full(outputs.shape[:1], float(self.looks))


@dataclass(frozen=True)
class Task:
    """A data set with one kind of noise, once for each seed, one after another: noisy labels, and the clean ones."""

    x: Tensor
    noisy: Tensor
    clean: Tensor
    fit: list[Tensor]
    inner: list[Tensor]
    test: list[Tensor]


def run(path: Path | None = None) -> dict[str, Any]:
    """Measure the table and keep it."""
    path = path or KEPT
    check_place(path)
    table = measure()
    write(path, table)
    return table


def results(path: Path | None = None) -> dict[str, Any]:
    """The last measured table; empty if there is none."""
    return read(path or KEPT)


def measure(seeds: int = SEEDS, steps: int = STEPS) -> dict[str, Any]:
    """Train every loss in every setting on every task, and rank them."""
    began = time.monotonic()
    tasks: list[dict[str, Any]] = [
        {"data": data, "noise": noise, "losses": _scores(make_task(data, noise, seeds), seeds, steps)}
        for data in DATA
        for noise in NOISE
    ]
    seconds = round(time.monotonic() - began, 1)
    return {"rule": RULE, **rank(tasks), "tasks": tasks, "seeds": seeds, "steps": steps, "seconds": seconds}


def rank(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The losses by their mean rank over the tasks, and whether the rule holds."""
    means = [[np.mean(task["losses"][name]["accuracies"]) for name in CANDIDATES] for task in tasks]
    ranks = rankdata(-np.round(means, 9), axis=1)
    mean_rank = dict(sorted(zip(CANDIDATES, ranks.mean(axis=0).tolist(), strict=True), key=lambda pair: pair[1]))
    return {
        "shown": PROPOSED[0] in list(mean_rank)[:5],
        "mean_rank": mean_rank,
        "worst_rank": dict(zip(CANDIDATES, ranks.max(axis=0).tolist(), strict=True)),
    }


def _scores(task: Task, seeds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Of each loss its setting, chosen on noisy rows over all seeds, and its accuracy on clean test rows a seed."""
    runs = [
        (name, setting, seed)
        for name, candidate in CANDIDATES.items()
        for setting in candidate.grid
        for seed in range(seeds)
    ]
    jobs = [
        Job(
            Objective(CANDIDATES[name].build(torch.tensor(setting), len(task.x))),
            task.fit[seed],
            task.inner[seed],
            seed=seed,
            contest=number,
        )
        for number, (name, setting, seed) in enumerate(runs)
    ]
    training = Training(max_steps=steps, eval_every=-(-steps // 5), patience=steps, lr=3e-3, race_after=0)
    metric = replace(find_metric("accuracy"), score=_Latest())
    network = Architecture("mlp", width=WIDTH, scaling="standard")
    trained = train(task.x, task.noisy, jobs, network, training, metric, task=Multiclass())
    inner: dict[tuple[str, float, int], float] = {}
    test: dict[tuple[str, float, int], float] = {}
    for number, (name, setting, seed) in enumerate(runs):
        for found, rows, labels in ((inner, task.inner[seed], task.noisy), (test, task.test[seed], task.clean)):
            found[name, setting, seed] = accuracy(trained.outputs(number, rows), labels[rows])
    scores = {}
    for name, candidate in CANDIDATES.items():
        held_out = {setting: np.mean([inner[name, setting, s] for s in range(seeds)]) for setting in candidate.grid}
        best = max(held_out, key=lambda setting: held_out[setting])
        values = [test[name, best, seed] for seed in range(seeds)]
        chosen = best if candidate.meaning else None
        scores[name] = {"setting": chosen, "accuracies": values}
    return scores


def make_task(data: str, noise: str, seeds: int) -> Task:
    """The data set with this noise, once for each seed."""
    features, target = DATA[data](return_X_y=True)
    rows, classes = len(target), int(target.max()) + 1
    kind, rate = NOISE[noise]
    noisy: list[np.ndarray] = []
    fit: list[Tensor] = []
    inner: list[Tensor] = []
    test: list[Tensor] = []
    for seed in range(seeds):
        training, tested = train_test_split(np.arange(rows), test_size=0.5, random_state=seed, stratify=target)
        fitted, held_out = train_test_split(training, test_size=0.2, random_state=seed, stratify=target[training])
        noisy.append(mislabel(target, kind, rate, classes, np.random.default_rng(seed)))
        for parts, chosen in ((fit, fitted), (inner, held_out), (test, tested)):
            parts.append(torch.from_numpy(np.sort(chosen) + seed * rows))
    return Task(
        x=torch.from_numpy(features.astype(np.float32)).repeat(seeds, 1),
        noisy=torch.from_numpy(np.concatenate(noisy).astype(np.int64)),
        clean=torch.from_numpy(np.tile(target.astype(np.int64), seeds)),
        fit=fit,
        inner=inner,
        test=test,
    )


def mislabel(target: np.ndarray, kind: str, rate: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """As the authors do: a label becomes any class, its own among them (symmetric), or the next class (asymmetric)."""
    hit = rng.random(len(target)) < rate
    other = rng.integers(classes, size=len(target)) if kind == "symmetric" else (target + 1) % classes
    return np.where(hit, other, target)
