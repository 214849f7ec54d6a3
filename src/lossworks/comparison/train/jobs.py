"""Jobs: the settings of the training, what to train as one replica, and a replica's state during training."""

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
        batch_size: The number of rows in a step.
        max_steps: The largest number of steps.
        eval_every: The number of steps between two scores on the inner rows.
        patience: After how many scores in a row without an improvement a replica stops.
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
    """One replica to train.

    Args:
        objective: The replica's own instance. Floats that differ between replicas must be 0-d tensors, as replicas
            cannot be stacked otherwise.
        fit: The numbers of the training rows, int64.
        inner: The numbers of the inner rows, which stop the training and choose the setting, int64.
        seed: The seed of the initial weights and of the order of the rows.
        contest: The number of the replica's contest; the replicas of one contest are settings that race each other on
            the same inner rows.
    """

    objective: Objective
    fit: Tensor
    inner: Tensor
    seed: int
    contest: int


@dataclass
class Replica:
    """A job with the state of its training."""

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
        """Reset the replica to its state before the first step."""
        self.order = Order(self.job.fit.cpu(), torch.Generator().manual_seed(seed_from(self.job.seed, 1)))
        self.curve, self.best = [], {}
        self.best_step, self.best_score, self.waited = 0, float("-inf"), 0
        self.dropped = self.done = False

    def note(self, step: int, score: float, patience: int) -> bool:
        """Record a score, and return whether it is the best so far."""
        self.curve.append((step, score))
        better = score > self.best_score
        if better:
            self.best_step, self.best_score, self.waited = step, score, 0
        else:
            self.waited += 1
        self.done = not isfinite(score) or self.waited >= patience
        return better


def seed_from(*seeds: int) -> int:
    """Derive one seed from several numbers."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])
