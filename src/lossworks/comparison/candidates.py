"""The candidates of a comparison: the user's own objectives, or those of the catalog that help with this data.

The candidates are taken from the catalog alone, so a new part is tried without a change in this file. A part is chosen
for a *trouble*, a term of the catalog's vocabulary. For each trouble that any data set of the task may have, the best
fitting part is tried. For each trouble that a finding points to, and for those that come with the user's groups or
attack, the best few parts are tried in turn, as long as there is room. :func:`_place` ranks the parts for a trouble.
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
from torch import Tensor

from lossworks.catalog import Entry, claims, papers, parts
from lossworks.checks import InputError, checks, nearest, shown
from lossworks.comparison.attack import Attack
from lossworks.comparison.findings import Finding
from lossworks.comparison.read.dataset import Dataset
from lossworks.comparison.tasks.base import Task
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Part, Penalty, Perturbation, Weighting

__all__ = ["OUTSIDE", "Candidate", "candidate_from_name", "check_kind", "choose_candidates", "compose"]

OUTSIDE = "gradient boosting"
"""The name of the outside line, which is not a candidate."""
ROLES = (Loss, BatchLoss, Weighting, Perturbation, Penalty)
"""The roles of the parts that an objective is composed of."""
FOLDERS = ("losses", "weights", "perturb", "penalties")
"""The folders whose parts take models with one output vector per row, as ``compare`` trains them."""
PLAIN = {"self", "output", "target", "sample_weight"}
"""The arguments that the ``forward`` of a loss that couples its batch may have."""
FOUND = 5
"""The largest number of parts that are tried for each trouble that was found."""
MOST = 12
"""The largest number of candidates, including the reference."""
MOST_SETTINGS = 4
TRIED = 8
"""How many rows an objective of the user is tried on."""


@dataclass(frozen=True)
class Candidate:
    """One objective of a comparison with the settings to try: parts of the catalog, or the user's own instance."""

    name: str
    why: str
    parts: tuple[type[Part], ...] = ()
    settings: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    own: Objective | None = None

    @property
    def size(self) -> int:
        """The number of settings."""
        return len(self.settings) if self.own is None else 1

    def setting(self, number: int) -> str:
        """The setting as text, such as ``lam=3`` or ``default``."""
        if self.own is not None:
            return "as given"
        named = [f"{key}={_short(value)}" for mapping in self.settings[number] for key, value in mapping.items()]
        return ", ".join(named) or "default"

    def objective(self, number: int, facts: Mapping[str, Any]) -> Objective:
        """Build the objective in this setting, with its floats as tensors and what it needs from the training rows."""
        if self.own is not None:
            return copy.deepcopy(self.own)
        built = [
            part(**{name: facts[name] for name in part.needs}, **_as_tensors(mapping))
            for part, mapping in zip(self.parts, self.settings[number], strict=True)
        ]
        return compose(built)

    def stacks(self, number: int) -> tuple[Any, ...]:
        """The key of the settings that can be trained in one group: everything in a setting that is not a float."""
        if self.own is not None:
            return ()
        return tuple(
            (key, value if not isinstance(value, float) else float)
            for mapping in self.settings[number]
            for key, value in sorted(mapping.items())
        )


def compose(built: Sequence[Part]) -> Objective:
    """Compose these parts into an objective, each in its own role."""
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
    """Choose the candidates, with the reference first.

    They are the objectives that the user asks for, or by default those that help with what was found in the data. If
    there is an attack, perturbations that have an attack's arguments are set to this attack.
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
    """Names of candidates, each with the reason to try it: those for any data first, then those for each trouble."""
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
    """The troubles of this data, each with the reason to try a part that helps with it."""
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
    """The candidates that help with a trouble, best first; a part that is not a loss is joined to the reference."""
    found = [entry for entry in fitting if term in entry.helps]
    return [_candidate_name(task, entry) for entry in sorted(found, key=functools.partial(_place, task, term))]


def _place(task: Task, term: str, entry: Entry) -> tuple[Any, ...]:
    """The sort key of a part among those that help with a trouble; the smallest comes first.

    The key compares, in this order: the trouble's place in what the part helps with; whether the claim of the part's
    own paper (the first that it names) was measured and shown; whether the part takes the reference's kind of target;
    how few facts it needs from the data; and how old the method is, older first.
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
    """The parts that can be tried on this data without anything else."""
    grouped = dataset.group is not None
    rows, sizes = np.arange(len(dataset.target)), (len(dataset.classes), len(dataset.group_names))
    facts = dataset.task.training_facts(dataset.target, rows, *sizes).keys()

    def fits(part: type[Part]) -> bool:
        if part.beside or not set(part.needs) <= facts or (getattr(part, "needs_group", False) and not grouped):
            return False
        return not issubclass(part, (Loss, BatchLoss)) or (dataset.task.fits(part.kind) and not _further_inputs(part))

    return [entry for entry in _entries().values() if entry.name != dataset.task.reference and fits(entry.part)]


def _aimed(dataset: Dataset, attack: Attack, guards: Sequence[str]) -> list[str]:
    """Candidates with the best perturbation that can be set to the attack.

    It is joined to the reference alone and, if the rows have groups, also to the best guard of the worst group.
    """
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
    """Whether a perturbation has all of the attack's settings as arguments."""
    return attack.settings().keys() <= inspect.signature(part.__init__).parameters.keys()


def _against(attack: Attack | None, candidate: Candidate) -> Candidate:
    """The candidate with its perturbation set to the attack, if possible, for each setting of the other parts."""
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
    """The catalog's parts that an objective of a comparison can be composed of."""
    return {
        name: entry
        for name, entry in parts().items()
        if entry.folder in FOLDERS and isinstance(entry.part, type) and issubclass(entry.part, ROLES)
    }


def _further_inputs(part: type[Part]) -> list[str]:
    """The arguments that a loss that couples its batch takes besides outputs, targets and weights."""
    if not issubclass(part, BatchLoss):
        return []
    return [name for name in inspect.signature(part.forward).parameters if name not in PLAIN]


# By name


def candidate_from_name(
    name: str, why: str, task: Task, argument: str = "objectives", *, grouped: bool = False
) -> Candidate:
    """Build a candidate from the catalog by its name: a loss, or a loss and other parts joined by ``+``.

    Error messages begin with ``argument``; ``grouped`` says whether the rows have groups.
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
    """Raise unless the loss can be trained on this task and takes nothing but outputs and targets."""
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
    _try_own(name, objective, dataset)
    return Candidate(name, "given", own=objective)


def _try_own(name: str, objective: Objective, dataset: Dataset) -> None:
    """Raise unless the objective gives one number with a gradient for some rows of small random outputs.

    Whether the number is finite is left to the training, which may diverge without stopping the others.
    """
    argument, loss = f"objectives[{name!r}]", objective.loss
    target = dataset.task.tensor(dataset.target)
    rows = torch.linspace(0, len(target) - 1, min(TRIED, len(target))).long()
    outputs = dataset.task.outputs(loss, target)
    with torch.random.fork_rng(devices=[]), checks(False):
        torch.manual_seed(0)
        output = torch.randn(len(rows), outputs)
        leaf = (output[:, 0] if loss.kind.flat and outputs == 1 else output).requires_grad_()
        group = None if dataset.group is None else torch.from_numpy(dataset.group)[rows]
        try:
            value = copy.deepcopy(objective).risk(leaf, target[rows], index=rows, group=group)
            if not isinstance(value, Tensor) or value.ndim:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"{argument} must give one number for a batch, got {got} for {len(rows)} rows")
            torch.autograd.grad(value, leaf)
        except InputError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{argument} fails on {len(rows)} rows ({type(error).__name__}: {reason})") from error


def _as_tensors(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The setting with its floats as 0-d tensors, so that replicas in different settings can be stacked."""
    return {key: torch.tensor(value) if isinstance(value, float) else value for key, value in mapping.items()}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
