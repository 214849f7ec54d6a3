"""What will be trained: the candidates and why each is there, the folds, and the groups that are trained together.

The plan is a function of the data, the options and the seed alone, so the same seed gives the same plan.
"""

import copy
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from torch import nn

from lossworks.catalog import parts
from lossworks.checks import InputError, nearest
from lossworks.comparison.attack import Attack
from lossworks.comparison.findings import Finding
from lossworks.comparison.read.dataset import Dataset, Task
from lossworks.comparison.train.jobs import Job, Training
from lossworks.objective import Objective
from lossworks.perturb import PGD
from lossworks.roles import Loss, Part, Penalty, Perturbation, Weighting

REFERENCE: Mapping[Task, str] = {
    "binary": "CrossEntropyLoss",
    "multiclass": "CrossEntropyLoss",
    "real": "SquaredLoss",
}
OUTSIDE = "gradient boosting"
ALWAYS: Mapping[Task, tuple[str, ...]] = {
    "binary": ("LDRLoss", "FocalLoss", "BrierLoss"),
    "multiclass": ("LDRLoss", "FocalLoss", "BrierLoss"),
    "real": ("HuberLoss", "AbsoluteLoss", "HLGaussLoss"),
}
"""Worth trying on any data."""
GROUPED = ("GroupDRO", "KLDRO", "CVaR")
"""The weights that are tried with the reference where the rows have groups."""
PREFERRED: Mapping[str, tuple[str, ...]] = {
    "noisy labels": (
        *("GeneralizedCrossEntropyLoss", "SymmetricCrossEntropyLoss", "ActivePassiveLoss"),
        *("CrossEntropyLoss+TrimmedWeights", "CrossEntropyLoss+SmallLossWeights"),
    ),
    "imbalance": ("LogitAdjustedLoss", "CrossEntropyLoss+ClassBalanced", "LDAMLoss"),
    "outliers": ("GeneralRobustLoss", "TukeyBiweightLoss", "LogCoshLoss"),
    "heavy tails": ("GeneralRobustLoss",),
    "overfitting": ("EnsLoss", "OneVsRestEnsLoss"),
    "many classes": ("ZLoss",),
}
"""The parts that are tried first for what the findings point to; the catalog knows more."""
GROUP_SIZE = 64
INNER_SHARE = 0.15
INNER_MOST = 10_000


@dataclass(frozen=True)
class Candidate:
    """One objective under comparison: parts from the catalog, or the user's own instance, and the settings to try."""

    name: str
    why: str
    parts: tuple[type[Part], ...] = ()
    settings: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    own: Objective | None = None

    @property
    def size(self) -> int:
        """How many settings there are."""
        return len(self.settings) if self.own is None else 1

    def setting(self, number: int) -> str:
        """The setting in words: ``lam=3``, or ``default``."""
        if self.own is not None:
            return "as given"
        named = [f"{key}={_short(value)}" for mapping in self.settings[number] for key, value in mapping.items()]
        return ", ".join(named) or "default"

    def objective(self, number: int, facts: Mapping[str, Any]) -> Objective:
        """The objective in that setting, what it needs of the training rows filled in, its floats as tensors."""
        if self.own is not None:
            return copy.deepcopy(self.own)
        built = [
            part(**{name: facts[name] for name in part.needs}, **_as_tensors(mapping))
            for part, mapping in zip(self.parts, self.settings[number], strict=True)
        ]
        return compose(built)

    def loss(self) -> type[Loss]:
        """The class of its loss."""
        if self.own is not None:
            return type(self.own.loss)  # type: ignore[return-value]
        return next(part for part in self.parts if issubclass(part, Loss))

    def stacks(self, number: int) -> tuple[Any, ...]:
        """What settings must share to be trained in one group: all that is not a float."""
        if self.own is not None:
            return ()
        return tuple(
            (key, value if not isinstance(value, float) else float)
            for mapping in self.settings[number]
            for key, value in sorted(mapping.items())
        )


@dataclass(frozen=True)
class Split:
    """One fold of one repeat: rows to fit on, inner rows for early stopping and settings, rows to test on."""

    fold: int
    repeat: int
    fit: np.ndarray
    inner: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Replica:
    """One model to train."""

    setting: int
    split: int
    seed: int


@dataclass(frozen=True)
class Group:
    """Replicas of one candidate that are trained together, and are committed to the journal together."""

    number: int
    candidate: int
    replicas: tuple[Replica, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that will be trained, in order."""

    task: Task
    metric: str
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
        """A digest that two runs on this data share when they would train the same models."""
        said = [self.task, self.metric, self.seed, self.folds, self.repeats, self.training, *also]
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
    """A digest of what a module is made of and of every value in it, the same in every process."""
    plain = [
        (name, type(part).__qualname__, sorted((k, repr(v)) for k, v in vars(part).items() if not k.startswith("_")))
        for name, part in module.named_modules()
    ]
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(plain)).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compose(built: Sequence[Part]) -> Objective:
    """The objective of these parts, each in its own role."""
    weights = [part for part in built if isinstance(part, Weighting)]
    perturb = [part for part in built if isinstance(part, Perturbation)]
    return Objective(
        loss=next(part for part in built if isinstance(part, Loss)),
        weights=weights[0] if weights else None,
        perturb=perturb[0] if perturb else None,
        penalties=[part for part in built if isinstance(part, Penalty)],
    )


def choose_candidates(
    dataset: Dataset,
    findings: Sequence[Finding],
    objectives: Sequence[str] | Mapping[str, Loss | Objective] | None,
    attack: Attack | None = None,
) -> tuple[Candidate, ...]:
    """The candidates, the reference first: those that were asked for, or those that the findings point to.

    Under an attack, those that train against :class:`~lossworks.perturb.PGD` train against this one.
    """
    reference = candidate_from_name(REFERENCE[dataset.task], "the reference", dataset.task)
    grouped = dataset.group is not None
    if objectives is not None and OUTSIDE in objectives:
        raise InputError(f"objectives: {OUTSIDE!r} is the name of the outside line; choose another")
    if isinstance(objectives, Mapping):
        chosen = [_own(name, given, dataset) for name, given in objectives.items()]
        own = [candidate for candidate in chosen if candidate.name == reference.name]
        return (*(own or [reference]), *(candidate for candidate in chosen if candidate.name != reference.name))
    if objectives is not None:
        names = list(dict.fromkeys(objectives))
        others = [name for name in names if name != reference.name]
        chosen = [candidate_from_name(name, "asked for", dataset.task, grouped=grouped) for name in others]
        return (reference, *(_against(attack, candidate) for candidate in chosen))
    whys: dict[str, str] = dict.fromkeys(ALWAYS[dataset.task], "worth trying on any data")
    if grouped:
        why = "guards the worst group, or the worst rows whatever their group"
        whys |= {f"{reference.name}+{weights}": why for weights in GROUPED}
    if attack is not None:
        whys[f"{reference.name}+PGD"] = "trained on inputs that the attack has moved"
        if grouped:
            whys[f"{reference.name}+KLDRO+PGD"] = "the same, with more weight on the worst rows"
    for finding in findings:
        for term in finding.helps:
            for name in PREFERRED.get(term, ()):
                if _fits(name, dataset.task):
                    whys.setdefault(name, f"helps with {term}: {finding.text}")
    chosen = [candidate_from_name(name, why, dataset.task, grouped=grouped) for name, why in whys.items()]
    return (reference, *(_against(attack, candidate) for candidate in chosen))


def _against(attack: Attack | None, candidate: Candidate) -> Candidate:
    """The candidate whose PGD, if it has one, is the attack: one setting of it beside each of the other parts'."""
    if attack is None or PGD not in candidate.parts:
        return candidate
    others = ((attack.settings(),) if part is PGD else part.settings for part in candidate.parts)
    return replace(candidate, settings=tuple(itertools.islice(itertools.product(*others), 4)))


def candidate_from_name(
    name: str, why: str, task: Task, argument: str = "objectives", *, grouped: bool = False
) -> Candidate:
    """A candidate from the catalog: a loss, or a loss and other parts joined by ``+``; errors name ``argument``.

    ``grouped`` is whether the rows have groups.
    """
    roles = (Loss, Weighting, Perturbation, Penalty)
    known = {
        entry.name: entry
        for entry in parts().values()
        if isinstance(entry.part, type) and issubclass(entry.part, roles)
    }
    chosen = []
    for piece in name.split("+"):
        if piece.strip() not in known:
            raise InputError(f"{argument}: no part is called {piece.strip()!r}{nearest(piece.strip(), known)}")
        chosen.append(known[piece.strip()].part)
    losses = [part for part in chosen if issubclass(part, Loss)]
    if len(losses) != 1:
        raise InputError(f"{argument}: {name!r} must have exactly one loss, it has {len(losses)}")
    check_kind(argument, name, losses[0], task)
    for role in (Weighting, Perturbation):
        if sum(issubclass(part, role) for part in chosen) > 1:
            raise InputError(f"{argument}: {name!r} may have at most one {role.__name__.lower()}")
    if not grouped:
        _refuse_ungrouped(argument, name, chosen)
    if any("sample_weights" in part.needs for part in chosen):
        raise InputError(f"{argument}: {name!r} needs weights of your own; give it from Python, as an Objective")
    settings = tuple(itertools.islice(itertools.product(*(part.settings for part in chosen)), 4))
    return Candidate(name, why, tuple(chosen), settings)


def _refuse_ungrouped(argument: str, name: str, chosen: Sequence[type[Part]]) -> None:
    """Raise if one of the parts needs groups."""
    for part in chosen:
        if getattr(part, "needs_group", False):
            raise InputError(f"{argument}: {name!r} needs groups: name their column, as --group or group= does")


def _own(name: str, given: Loss | Objective, dataset: Dataset) -> Candidate:
    if not isinstance(given, (Loss, Objective)):
        raise InputError(f"objectives[{name!r}] must be a lossworks Loss or Objective, got {type(given).__name__}")
    objective = given if isinstance(given, Objective) else Objective(given)
    if not isinstance(objective.loss, Loss):
        raise InputError(f"objectives[{name!r}] has no value per row, which compare needs for early stopping and folds")
    check_kind("objectives", name, type(objective.loss), dataset.task)
    if dataset.group is None:
        _refuse_ungrouped("objectives", name, [type(part) for part in objective.modules() if isinstance(part, Part)])
    return Candidate(name, "given", own=objective)


def check_kind(argument: str, name: str, loss: type[Loss], task: Task) -> None:
    """Raise unless the loss is for this kind of target."""
    if not _kind_fits(loss, task):
        raise InputError(f"{argument}: {name!r} is for {loss.kind.title}, but the target is {task}")


def _kind_fits(loss: type[Loss], task: Task) -> bool:
    fitting = {"classes": task != "real", "binary": task == "binary", "real": task == "real"}
    return fitting.get(loss.kind.name, False)


def _fits(name: str, task: Task) -> bool:
    return _kind_fits(parts()[name.split("+")[0]].part, task)


def make_splits(target: np.ndarray, task: Task, folds: int, repeats: int, seed: int) -> tuple[Split, ...]:
    """Repeated folds, stratified by class; inner rows are drawn from each fold's training rows."""
    stratified = task != "real"
    splits = []
    for repeat in range(repeats):
        draw = derive_seed(seed, "folds", repeat)
        folder = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=draw)
        for fold, (train, test) in enumerate(folder.split(target, target if stratified else None)):
            fit, inner = inner_split(train, target, stratified, derive_seed(seed, "inner", repeat, fold))
            splits.append(Split(fold, repeat, fit, inner, test))
    return tuple(splits)


def inner_split(
    rows: np.ndarray, target: np.ndarray, stratified: bool, seed: int, share: float = INNER_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """The rows to fit on and the inner rows, stratified where every class has two rows or more."""
    size = min(max(round(share * len(rows)), 1), INNER_MOST)
    if stratified:
        present, counts = np.unique(target[rows], return_counts=True)
        stratified = bool(counts.min() >= 2) and size >= len(present)
    splitter = (StratifiedShuffleSplit if stratified else ShuffleSplit)(1, test_size=size, random_state=seed)
    fit, inner = next(splitter.split(rows, target[rows] if stratified else None))
    return rows[np.sort(fit)], rows[np.sort(inner)]


def default_training(rows: int) -> Training:
    """How long and in what steps to train on so many rows."""
    batch = 64 if rows < 4_000 else 128 if rows < 20_000 else 256 if rows < 200_000 else 512
    steps = int(np.clip(40 * rows / batch, 400, 3_000))
    return Training(batch_size=batch, max_steps=steps, eval_every=max(steps // 40, 10), patience=10, lr=3e-3)


def make_plan(
    dataset: Dataset,
    candidates: tuple[Candidate, ...],
    *,
    metric: str,
    folds: int,
    repeats: int,
    seed: int,
    training: Training | None = None,
    attack: Attack | None = None,
) -> Plan:
    """The whole plan: the reference's groups first, so that a run cut short still has what others are judged by."""
    splits = make_splits(dataset.target, dataset.task, folds, repeats, seed)
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
    """Pieces of at most ``size`` that never part the settings of one split, which race each other."""
    pieces: list[list[Replica]] = [[]]
    for _, together in itertools.groupby(replicas, key=lambda replica: replica.split):
        contest = list(together)
        if pieces[-1] and len(pieces[-1]) + len(contest) > size:
            pieces.append([])
        pieces[-1] += contest
    return [tuple(piece) for piece in pieces]


def training_facts(target: np.ndarray, rows: np.ndarray, num_classes: int, num_groups: int = 0) -> dict[str, Any]:
    """What losses and weightings may ask of the rows that they are fitted on; real targets in standardised units.

    Args:
        target: All targets, class codes or values.
        rows: The rows that are fitted on.
        num_classes: How many classes there are, 0 for real targets.
        num_groups: How many groups there are, 0 where none are named.
    """
    facts: dict[str, Any] = {"num_samples": len(target), "num_groups": num_groups}
    target = target[rows]
    if not num_classes:
        centre, scale = float(target.mean()), float(target.std()) or 1.0
        low, high = (float(target.min()) - centre) / scale, (float(target.max()) - centre) / scale
        room = 0.1 * (high - low) or 1.0
        # Beyond six standard deviations a bin would hold next to nothing; the outermost bins take what lies there.
        return facts | {"v_min": torch.tensor(max(low - room, -6.0)), "v_max": torch.tensor(min(high + room, 6.0))}
    counts = np.bincount(target, minlength=num_classes)
    return facts | {
        "class_counts": torch.tensor(counts, dtype=torch.float32),
        "num_classes": num_classes,
    }


def jobs_of(plan: Plan, group: Group, dataset: Dataset) -> list[Job]:
    """The group's replicas as the engine takes them."""
    candidate, jobs = plan.candidates[group.candidate], []
    sizes = len(dataset.classes), len(dataset.group_names)
    for replica in group.replicas:
        split = plan.splits[replica.split]
        jobs.append(
            Job(
                objective=candidate.objective(replica.setting, training_facts(dataset.target, split.fit, *sizes)),
                fit=torch.from_numpy(split.fit),
                inner=torch.from_numpy(split.inner),
                seed=replica.seed,
                contest=replica.split,
            )
        )
    return jobs


def derive_seed(*parts_of_it: object) -> int:
    """A seed from names and numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts_of_it).encode()).digest()[:4], "little") >> 1


def _as_tensors(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The setting with its floats as 0-d tensors, so that replicas in different settings stack."""
    return {key: torch.tensor(value) if isinstance(value, float) else value for key, value in mapping.items()}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
