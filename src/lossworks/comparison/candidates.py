"""Which objectives are tried, and why: the user's own, or those of the catalog that help with what is found.

The catalog alone says what there is, so a new part is tried without a line here. A part is chosen for a *trouble*, a
word of the catalog's vocabulary: one that any data of the task may have (for each of these, the best part that fits),
one that a finding points to, or one that comes with the user's groups or attack (for these, the best few, in turn, as
long as there is room). Which part is best for a trouble, :func:`_place` says.
"""

import copy
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lossworks.catalog import Entry, claims, papers, parts
from lossworks.checks import InputError, nearest, shown
from lossworks.comparison.attack import Attack
from lossworks.comparison.findings import Finding
from lossworks.comparison.read.dataset import Dataset
from lossworks.comparison.tasks.base import Task
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Part, Penalty, Perturbation, Weighting

__all__ = ["OUTSIDE", "Candidate", "candidate_from_name", "check_kind", "choose_candidates", "compose"]

OUTSIDE = "gradient boosting"
"""What the line from outside is called, which is no candidate."""
ROLES = (Loss, BatchLoss, Weighting, Perturbation, Penalty)
"""What an objective is composed of."""
FOLDERS = ("losses", "weights", "perturb", "penalties")
"""Where parts stand whose model gives one output a row, which is what ``compare`` trains."""
PLAIN = {"self", "output", "target", "sample_weight"}
"""What the forward of a loss that couples its batch may take."""
FOUND = 5
"""How many parts are tried for each trouble that was found."""
MOST = 12
"""How many candidates there are at most, the reference among them."""
MOST_SETTINGS = 4


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

    def stacks(self, number: int) -> tuple[Any, ...]:
        """What settings must share to be trained in one group: all that is not a float."""
        if self.own is not None:
            return ()
        return tuple(
            (key, value if not isinstance(value, float) else float)
            for mapping in self.settings[number]
            for key, value in sorted(mapping.items())
        )


def compose(built: Sequence[Part]) -> Objective:
    """The objective of these parts, each in its own role."""
    weights = [part for part in built if isinstance(part, Weighting)]
    perturb = [part for part in built if isinstance(part, Perturbation)]
    return Objective(
        loss=next(part for part in built if isinstance(part, (Loss, BatchLoss))),
        weights=weights[0] if weights else None,
        perturb=perturb[0] if perturb else None,
        penalties=[part for part in built if isinstance(part, Penalty)],
    )


def choose_candidates(
    dataset: Dataset,
    findings: Sequence[Finding],
    objectives: Sequence[str] | Mapping[str, Loss | BatchLoss | Objective] | None,
    attack: Attack | None = None,
) -> tuple[Candidate, ...]:
    """The candidates, the reference first: those that were asked for, or those that help with what was found.

    Under an attack, a perturbation that can be set to an attack is set to this one.
    """
    task, grouped = dataset.task, dataset.group is not None
    reference = candidate_from_name(task.reference, "the reference", task)
    if objectives is not None and OUTSIDE in objectives:
        raise InputError(f"objectives: {OUTSIDE!r} is the name of the outside line; choose another")
    if isinstance(objectives, Mapping):
        given = [_own(name, objective, dataset) for name, objective in objectives.items()]
        own = [candidate for candidate in given if candidate.name == reference.name]
        return (*(own or [reference]), *(candidate for candidate in given if candidate.name != reference.name))
    if objectives is not None:
        if isinstance(objectives, str) or not all(isinstance(name, str) for name in objectives):
            raise InputError(
                f"objectives must be names of the catalog, as a list, or {{name: Loss or Objective}}, "
                f"got {shown(objectives)}"
            )
        asked = [name for name in dict.fromkeys(objectives) if name != reference.name]
        chosen = [candidate_from_name(name, "asked for", task, grouped=grouped) for name in asked]
    else:
        whys = itertools.islice(_whys(dataset, findings, attack).items(), MOST - 1)
        chosen = [candidate_from_name(name, why, task, grouped=grouped) for name, why in whys]
    return (reference, *(_against(attack, candidate) for candidate in chosen))


# From the catalog


def _whys(dataset: Dataset, findings: Sequence[Finding], attack: Attack | None) -> dict[str, str]:
    """Names of candidates, each with why it is tried: what any data may need first, then the troubles in turn."""
    helping = functools.partial(_helping, dataset.task, _fitting(dataset))
    always = [(helping(term)[:1], f"worth trying on any data: helps with {term}") for term in dataset.task.troubles]
    troubles = [(helping(term)[:FOUND], why) for term, why in _troubles(dataset, findings)]
    if attack is not None:
        troubles.insert(0, (_aimed(dataset, attack, helping("worst case")), "trained on inputs that the attack moved"))
    first: dict[str, str] = {}
    for name, why in itertools.chain(_in_turn(always), _in_turn(troubles)):
        first.setdefault(name, why)
    return first


def _troubles(dataset: Dataset, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """The troubles of this data, each with why a part that helps with it is tried."""
    found: dict[str, str] = {}
    if dataset.group is not None:
        found |= {"groups": "guards the worst group", "worst case": "guards the worst rows, whatever their group"}
    for finding in findings:
        for term in finding.helps:
            found.setdefault(term, f"helps with {term}: {finding.text}")
    return list(found.items())


def _in_turn(troubles: Sequence[tuple[Sequence[str], str]]) -> Iterator[tuple[str, str]]:
    """The best part of each trouble, then the second best of each, and so on."""
    for place in range(max((len(names) for names, _ in troubles), default=0)):
        for names, why in troubles:
            if place < len(names):
                yield names[place], why


def _helping(task: Task, fitting: Sequence[Entry], term: str) -> list[str]:
    """The candidates that help with a trouble, best first; what is no loss stands beside the reference."""
    found = [entry for entry in fitting if term in entry.helps]
    return [_candidate_name(task, entry) for entry in sorted(found, key=functools.partial(_place, task, term))]


def _place(task: Task, term: str, entry: Entry) -> tuple[Any, ...]:
    """Where a part comes among those that help with a trouble: the smaller, the earlier.

    First come the parts that name the trouble first of what they help with; then those of whose own paper, the first
    that they name, the claim was measured and showed; then those for the reference's kind of target, those that need
    the least of the data, and those that are longest known.
    """
    kind = parts()[task.reference].part.kind
    return (
        entry.helps.index(term),
        not any(key in claims() and claims()[key].shown for key in entry.papers[:1]),
        getattr(entry.part, "kind", kind) != kind,
        len(entry.part.needs),
        min((papers()[key].year for key in entry.papers), default=0),
        entry.name,
    )


def _fitting(dataset: Dataset) -> list[Entry]:
    """The parts that can be tried by themselves on this data."""
    grouped = dataset.group is not None
    rows, sizes = np.arange(len(dataset.target)), (len(dataset.classes), len(dataset.group_names))
    facts = dataset.task.training_facts(dataset.target, rows, *sizes).keys()

    def fits(part: type[Part]) -> bool:
        if part.beside or not set(part.needs) <= facts or (getattr(part, "needs_group", False) and not grouped):
            return False
        return not issubclass(part, (Loss, BatchLoss)) or (dataset.task.fits(part.kind) and not _further_inputs(part))

    return [entry for entry in _entries().values() if entry.name != dataset.task.reference and fits(entry.part)]


def _aimed(dataset: Dataset, attack: Attack, guards: Sequence[str]) -> list[str]:
    """The best perturbation that can be set to the attack; with groups, together with the best guard of the worst."""
    task = dataset.task
    entries = [
        entry
        for entry in _entries().values()
        if issubclass(entry.part, Perturbation) and "attacks" in entry.helps and _can_be_set(entry.part, attack)
    ]
    best = [entry.name for entry in sorted(entries, key=functools.partial(_place, task, "attacks"))[:1]]
    alone = [f"{task.reference}+{name}" for name in best]
    if dataset.group is None:
        return alone
    guarding = [guard for guard in guards if "+" in guard][:1]
    return [*alone, *(f"{guard}+{name}" for guard in guarding for name in best)]


def _can_be_set(part: type[Part], attack: Attack) -> bool:
    """Whether a perturbation takes all that an attack says."""
    return attack.settings().keys() <= inspect.signature(part.__init__).parameters.keys()


def _against(attack: Attack | None, candidate: Candidate) -> Candidate:
    """The candidate whose perturbation, if it can be, is set to the attack; beside each setting of the other parts."""
    if attack is None:
        return candidate
    aimed = [issubclass(part, Perturbation) and _can_be_set(part, attack) for part in candidate.parts]
    if not any(aimed):
        return candidate
    others = ((attack.settings(),) if own else part.settings for own, part in zip(aimed, candidate.parts, strict=True))
    return replace(candidate, settings=tuple(itertools.islice(itertools.product(*others), MOST_SETTINGS)))


def _candidate_name(task: Task, entry: Entry) -> str:
    return entry.name if issubclass(entry.part, (Loss, BatchLoss)) else f"{task.reference}+{entry.name}"


def _entries() -> dict[str, Entry]:
    """The parts that an objective for a table can have."""
    return {
        name: entry
        for name, entry in parts().items()
        if entry.folder in FOLDERS and isinstance(entry.part, type) and issubclass(entry.part, ROLES)
    }


def _further_inputs(part: type[Part]) -> list[str]:
    """What a loss that couples its batch takes beside outputs, targets and weights."""
    if not issubclass(part, BatchLoss):
        return []
    return [name for name in inspect.signature(part.forward).parameters if name not in PLAIN]


# By name


def candidate_from_name(
    name: str, why: str, task: Task, argument: str = "objectives", *, grouped: bool = False
) -> Candidate:
    """A candidate from the catalog: a loss, or a loss and other parts joined by ``+``; errors name ``argument``.

    ``grouped`` is whether the rows have groups.
    """
    known, chosen = _entries(), []
    for piece in name.split("+"):
        if piece.strip() not in known:
            raise InputError(f"{argument}: no part is called {piece.strip()!r}{nearest(piece.strip(), known)}")
        chosen.append(known[piece.strip()].part)
    losses = [part for part in chosen if issubclass(part, (Loss, BatchLoss))]
    if len(losses) != 1:
        raise InputError(f"{argument}: {name!r} must have exactly one loss, it has {len(losses)}")
    check_kind(argument, name, losses[0], task)
    for role in (Weighting, Perturbation):
        if sum(issubclass(part, role) for part in chosen) > 1:
            raise InputError(f"{argument}: {name!r} may have at most one {role.__name__.lower()}")
    if issubclass(losses[0], BatchLoss) and any(issubclass(part, Weighting) for part in chosen):
        raise InputError(f"{argument}: {name!r}: {losses[0].__name__} couples its batch, and has no rows to weigh")
    if not grouped:
        _refuse_ungrouped(argument, name, chosen)
    if any("sample_weights" in part.needs for part in chosen):
        raise InputError(f"{argument}: {name!r} needs weights of your own; give it from Python, as an Objective")
    settings = tuple(itertools.islice(itertools.product(*(part.settings for part in chosen)), MOST_SETTINGS))
    return Candidate(name, why, tuple(chosen), settings)


def check_kind(argument: str, name: str, loss: type[Loss] | type[BatchLoss], task: Task) -> None:
    """Raise unless the loss is for this task's kind of target, and takes nothing but outputs and targets."""
    if not task.fits(loss.kind):
        raise InputError(f"{argument}: {name!r} is for {loss.kind.title}, but the target is {task.name}")
    if further := _further_inputs(loss):
        raise InputError(
            f"{argument}: {name!r} couples its batch and takes {' and '.join(further)} beside outputs and targets, "
            f"which a table does not have"
        )
    if issubclass(loss, BatchLoss) and "sample_weight" not in inspect.signature(loss.forward).parameters:
        raise InputError(f"{argument}: {name!r}: {loss.__name__}.forward must take sample_weight=, as a BatchLoss does")


def _refuse_ungrouped(argument: str, name: str, chosen: Sequence[type[Part]]) -> None:
    """Raise if one of the parts needs groups."""
    for part in chosen:
        if getattr(part, "needs_group", False):
            raise InputError(f"{argument}: {name!r} needs groups: name their column, as --group or group= does")


def _own(name: str, given: Loss | BatchLoss | Objective, dataset: Dataset) -> Candidate:
    if not isinstance(given, (Loss, BatchLoss, Objective)):
        raise InputError(
            f"objectives[{name!r}] must be a lossworks Loss or Objective, as an object, got {shown(given)}"
        )
    objective = given if isinstance(given, Objective) else Objective(given)
    check_kind("objectives", name, type(objective.loss), dataset.task)
    if dataset.group is None:
        _refuse_ungrouped("objectives", name, [type(part) for part in objective.modules() if isinstance(part, Part)])
    return Candidate(name, "given", own=objective)


def _as_tensors(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The setting with its floats as 0-d tensors, so that replicas in different settings stack."""
    return {key: torch.tensor(value) if isinstance(value, float) else value for key, value in mapping.items()}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
