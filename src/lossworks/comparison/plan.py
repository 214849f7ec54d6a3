"""The plan of a comparison: every candidate on every fold, in groups that are trained together.

The plan depends on the data, the options and the seed alone, so the same seed gives the same plan.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lossworks.comparison.attack import Attack
from lossworks.comparison.candidates import Candidate
from lossworks.comparison.read.dataset import Dataset
from lossworks.comparison.splits import Split, derive_seed, make_splits
from lossworks.comparison.tasks.base import Task
from lossworks.comparison.train.jobs import Job, Training
from lossworks.metrics.registry import Metric

__all__ = ["GROUP_SIZE", "Group", "Plan", "Replica", "default_training", "digest_of", "jobs_of", "make_plan"]

GROUP_SIZE = 64


@dataclass(frozen=True)
class Replica:
    """One model to train."""

    setting: int
    split: int
    seed: int


@dataclass(frozen=True)
class Group:
    """Replicas of one candidate that are trained together and committed to the journal together."""

    number: int
    candidate: int
    replicas: tuple[Replica, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that will be trained, in order."""

    task: Task
    metric: Metric
    reference: str
    candidates: tuple[Candidate, ...]
    splits: tuple[Split, ...]
    groups: tuple[Group, ...]
    training: Training
    seed: int
    folds: int
    repeats: int
    attack: Attack | None = None

    def fingerprint(self, data: Sequence[np.ndarray], *also: object) -> str:
        """A digest that is equal for two runs if they would train the same models on the same data."""
        said = [self.task.name, self.metric.name, self.seed, self.folds, self.repeats, self.training, *also]
        said += [] if self.attack is None else [self.attack]
        said += [
            (c.name, "" if c.own is None else digest_of(c.own), [c.setting(s) for s in range(c.size)])
            for c in self.candidates
        ]
        digest = hashlib.sha256(repr(said).encode())
        for values in data:
            digest.update(np.ascontiguousarray(values).data)
        for split in self.splits:
            for rows in (split.fit, split.inner, split.test):
                digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()[:16]


def digest_of(module: nn.Module) -> str:
    """A digest of a module's structure and of every value in it; it is the same in every process."""
    plain = [
        (name, type(part).__qualname__, sorted((k, repr(v)) for k, v in vars(part).items() if not k.startswith("_")))
        for name, part in module.named_modules()
    ]
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(plain)).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def default_training(rows: int) -> Training:
    """The default batch size, number of steps and learning rate for this number of rows."""
    batch = 64 if rows < 4_000 else 128 if rows < 20_000 else 256 if rows < 200_000 else 512
    steps = int(np.clip(40 * rows / batch, 400, 3_000))
    return Training(batch_size=batch, max_steps=steps, eval_every=max(steps // 40, 10), patience=10, lr=3e-3)


def make_plan(
    dataset: Dataset,
    candidates: tuple[Candidate, ...],
    *,
    metric: Metric,
    folds: int,
    repeats: int,
    seed: int,
    training: Training | None = None,
    attack: Attack | None = None,
) -> Plan:
    """Make the plan, with the reference's groups first, so that a run that is cut short can still be judged."""
    splits = make_splits(len(dataset.target), dataset.task.strata(dataset.target), folds, repeats, seed)
    groups: list[Group] = []
    for number, candidate in enumerate(candidates):
        alike: dict[tuple[Any, ...], list[Replica]] = {}
        for setting in range(candidate.size):
            for split, where in enumerate(splits):
                own = derive_seed(seed, candidate.name, setting, where.fold, where.repeat)
                alike.setdefault(candidate.stacks(setting), []).append(Replica(setting, split, own))
        for replicas in alike.values():
            by_split = sorted(replicas, key=lambda replica: (replica.split, replica.setting))
            groups += [Group(len(groups) + i, number, chunk) for i, chunk in enumerate(_chunks(by_split, GROUP_SIZE))]
    rows = len(splits[0].fit)
    return Plan(
        task=dataset.task,
        metric=metric,
        reference=candidates[0].name,
        candidates=candidates,
        splits=splits,
        groups=tuple(groups),
        training=training or default_training(rows),
        seed=seed,
        folds=folds,
        repeats=repeats,
        attack=attack,
    )


def _chunks(replicas: list[Replica], size: int) -> list[tuple[Replica, ...]]:
    """Divide the replicas into pieces of at most ``size``; settings of one split race each other and stay together."""
    pieces: list[list[Replica]] = [[]]
    for _, together in itertools.groupby(replicas, key=lambda replica: replica.split):
        contest = list(together)
        if pieces[-1] and len(pieces[-1]) + len(contest) > size:
            pieces.append([])
        pieces[-1] += contest
    return [tuple(piece) for piece in pieces]


def jobs_of(plan: Plan, group: Group, dataset: Dataset) -> list[Job]:
    """The group's replicas as jobs for the engine."""
    candidate, jobs = plan.candidates[group.candidate], []
    sizes = len(dataset.classes), len(dataset.group_names)
    for replica in group.replicas:
        split = plan.splits[replica.split]
        facts = plan.task.training_facts(dataset.target, split.fit, *sizes)
        jobs.append(
            Job(
                objective=candidate.objective(replica.setting, facts),
                fit=torch.from_numpy(split.fit),
                inner=torch.from_numpy(split.inner),
                seed=replica.seed,
                contest=replica.split,
            )
        )
    return jobs
