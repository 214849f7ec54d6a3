"""What is trained, and how: a job, and the same on its way."""

from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn

from lossworks.checks import check_between, check_int, check_positive
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.models.scaling import Scaler, TargetScale
from lossworks.comparison.train.feed import Order
from lossworks.comparison.train.risk import State
from lossworks.objective import Objective

__all__ = ["Job", "Replica", "Training", "seed_from"]


@dataclass(frozen=True)
class Training:
    """How every replica is trained: AdamW on mini-batches, stopped early on its inner rows.

    Args:
        batch_size: Rows a step.
        max_steps: Steps at most.
        eval_every: Steps between scores on inner rows.
        patience: Scores in a row that may fail to improve before a replica stops.
        lr: AdamW's learning rate.
        weight_decay: AdamW's decoupled weight decay.
        race_after: The share of ``max_steps`` after which settings that are clearly behind are dropped; 0 drops none.
    """

    batch_size: int = 64
    max_steps: int = 1000
    eval_every: int = 25
    patience: int = 10
    lr: float = 1e-3
    weight_decay: float = 1e-2
    race_after: float = 1 / 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_steps", "eval_every", "patience"):
            check_int(name, getattr(self, name), low=1)
        check_positive("lr", self.lr)
        check_positive("weight_decay", self.weight_decay, allow_zero=True)
        check_between("race_after", self.race_after, 0, 1)


@dataclass(frozen=True)
class Job:
    """One replica.

    Args:
        objective: Its own instance; floats that differ between replicas are 0-d tensors, or the replicas don't stack.
        fit: Rows to train on, int64.
        inner: Rows that stop it and choose among settings, int64.
        seed: Of its initial weights and the order of its rows.
        contest: Replicas of one number are settings that race each other on the same inner rows.
    """

    objective: Objective
    fit: Tensor
    inner: Tensor
    seed: int
    contest: int


@dataclass
class Replica:
    """A job on its way."""

    number: int
    job: Job
    architecture: Architecture
    scaler: Scaler
    target: TargetScale | None
    head: nn.Module
    order: Order = field(init=False)
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: State = field(default_factory=dict)
    best_step: int = 0
    best_score: float = float("-inf")
    waited: int = 0
    dropped: bool = False
    done: bool = False

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Be as if nothing had been trained yet."""
        self.order = Order(self.job.fit.cpu(), torch.Generator().manual_seed(seed_from(self.job.seed, 1)))
        self.curve, self.best = [], {}
        self.best_step, self.best_score, self.waited = 0, float("-inf"), 0
        self.dropped = self.done = False

    def note(self, step: int, score: float, patience: int) -> bool:
        """Take a score down; whether it is the best yet."""
        self.curve.append((step, score))
        better = score > self.best_score
        if better:
            self.best_step, self.best_score, self.waited = step, score, 0
        else:
            self.waited += 1
        self.done = not isfinite(score) or self.waited >= patience
        return better


def seed_from(*seeds: int) -> int:
    """A seed from several."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])
