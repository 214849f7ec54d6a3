"""The workload of a plan: its work group by group, which can be sent to another process and done there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossworks.checks import InputError
from lossworks.comparison.attack import ROBUST, ROWS, SHARES, VERIFIED, Attack, accuracy_curve, verified_accuracy
from lossworks.comparison.candidates import OUTSIDE
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.plan import Group, Plan, Replica, jobs_of
from lossworks.comparison.read.dataset import Dataset
from lossworks.comparison.splits import derive_seed
from lossworks.comparison.tasks.base import Target
from lossworks.comparison.train.engine import Trained, one_thread, train
from lossworks.comparison.train.evaluate import evaluate, thinned
from lossworks.runs.memory import budget, is_out_of_memory
from lossworks.runs.units import Results, Tell, Unit

__all__ = ["Workload"]

UNTRAINED = "a training diverged before its first evaluation, so there is no model to score"


@dataclass(frozen=True)
class Workload:
    """Everything that the work of any group needs.

    A group is identified by its number in the plan; the next number after the last group is that of the outside line.

    Attributes:
        plan: The plan of what to train.
        dataset: The data; its features are not read and may be empty.
        x: The encoded rows ``(n, *shape)``.
        architecture: The architecture of the models.
        device: The device to train on, on the machine that does the work.
    """

    plan: Plan
    dataset: Dataset
    x: Tensor
    architecture: Architecture
    device: torch.device
    y: Tensor = field(init=False)
    group: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        group = self.dataset.group
        object.__setattr__(self, "y", self.dataset.task.tensor(self.dataset.target))
        object.__setattr__(self, "group", None if group is None else torch.from_numpy(group))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tensors as NumPy arrays, which the receiver does not need to copy."""
        return _received, (self.plan, self.dataset, self.x.numpy(), self.architecture, str(self.device))

    @property
    def outside(self) -> int:
        """The number of the outside line."""
        return len(self.plan.groups)

    def order(self) -> list[int]:
        """All numbers in the order of the work: the reference's groups, the outside line, then the rest."""
        first = [group.number for group in self.plan.groups if group.candidate == 0]
        rest = [group.number for group in self.plan.groups if group.candidate != 0]
        return [*first, self.outside, *rest]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """One unit for each group of replicas, and one for the outside line."""
        plan = self.plan
        names = [plan.candidates[group.candidate].name for group in plan.groups]
        sizes = [len(group.replicas) for group in plan.groups]
        named = zip([*names, OUTSIDE], [*sizes, len(plan.splits)], strict=True)
        return tuple(
            Unit(name, derive_seed(plan.seed, name, number), size) for number, (name, size) in enumerate(named)
        )

    def own_code(self) -> list[Any]:
        """The user's own model factory and the classes of the user's own objectives."""
        model = self.architecture.model
        own: list[Any] = [] if isinstance(model, str) else [model, type(model)]
        given = [candidate.own for candidate in self.plan.candidates if candidate.own is not None]
        return own + [type(module) for objective in given for module in objective.modules()]

    def work(
        self,
        number: int,
        *,
        tell: Tell | None = None,
        stop: Callable[[], bool] | None = None,
        memory: int | None = None,
    ) -> Results | None:
        """Train and evaluate a group, or fit and evaluate the outside line.

        The numbers are the same wherever it runs, because nothing but the workload is read.

        Args:
            number: The number of the group, or :attr:`outside`.
            tell: Called with the amount of work done, in units of one model.
            stop: Called from time to time; if it returns True, the work ends and None is returned.
            memory: About how many bytes the models in training may use; by default a share of what is free now. It
                changes no number.

        Raises:
            InputError: memory ran out, and the group cannot be trained in smaller parts.
        """
        tell, stop = tell or (lambda _: None), stop or (lambda: False)
        try:
            if number == self.outside:
                return _boosted(self, tell, stop)
            memory = budget(None, self.device) if memory is None else memory
            return _trained(self, self.plan.groups[number], tell, stop, memory)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self.units[number].name}: out of memory ({reason}); what was trained before is kept"
            ) from error


def _received(plan: Plan, dataset: Dataset, x: np.ndarray, architecture: Architecture, device: str) -> Workload:
    return Workload(plan, dataset, torch.from_numpy(x), architecture, torch.device(device))


def _trained(
    workload: Workload, group: Group, tell: Tell, stop: Callable[[], bool], memory: int | None
) -> Results | None:
    jobs = jobs_of(workload.plan, group, workload.dataset)
    results: dict[int, dict[str, Any]] = {}

    def finished(trained: Trained, numbers: Sequence[int]) -> None:
        if not stop():
            results.update((number, _result(workload, group, trained, number)) for number in numbers)

    trained = train(
        workload.x,
        workload.y,
        jobs,
        workload.architecture,
        workload.plan.training,
        workload.plan.metric,
        task=workload.plan.task,
        group=workload.group,
        device=workload.device,
        progress=lambda steps, total, _: tell(len(jobs) * steps / total),
        stop=stop,
        memory=memory,
        finished=finished,
    )
    if len(results) < len(jobs):
        return None
    if trained.short:
        told = [f"{results[0]['objective']}: {note}" for note in trained.short]
        results[0]["notes"] = [*results[0].get("notes", []), *told]
    return [results[number] for number in range(len(jobs))]


def _result(workload: Workload, group: Group, trained: Trained, number: int) -> dict[str, Any]:
    plan, dataset = workload.plan, workload.dataset
    replica, candidate = group.replicas[number], plan.candidates[group.candidate]
    split = plan.splits[replica.split]
    with one_thread():
        inner, test = (trained.outputs(number, torch.from_numpy(rows)).cpu() for rows in (split.inner, split.test))
        untrained = not trained.best_step[number]
        test = torch.full_like(test, math.nan) if untrained else test
        result = evaluate(dataset, plan.metric, inner=(split.inner, inner), test=(split.test, test))
        if plan.attack is not None:
            result = _attacked(workload, plan.attack, trained.module(number), replica, result)
    return (
        _named(plan, candidate.name, candidate.setting(replica.setting), replica.split)
        | result
        | {
            "setting_number": replica.setting,
            "dropped": bool(trained.dropped[number]),
            "inner_score": float(trained.best_score[number]),
            "best_step": int(trained.best_step[number]),
            "curve": thinned(trained.curves[number]),
        }
        | ({"notes": [f"{candidate.name}: {UNTRAINED}"]} if untrained else {})
    )


def _attacked(
    workload: Workload, attack: Attack, module: nn.Module, replica: Replica, result: dict[str, Any]
) -> dict[str, Any]:
    """Add the accuracy under attack and the curve over radii, on a limited number of test rows, to the result."""
    metrics = result["metrics"]
    if result.get("diverged"):
        return result | {"metrics": metrics | {ROBUST: math.nan} | ({VERIFIED: math.nan} if attack.certify else {})}
    tested = workload.plan.splits[replica.split].test
    rows = torch.from_numpy(tested[np.unique(np.linspace(0, len(tested) - 1, min(ROWS, len(tested))).astype(int))])
    assert isinstance(module, nn.Sequential)
    x, y = workload.x[rows].to(workload.device), workload.y[rows].to(workload.device)
    radii = [share * attack.eps for share in SHARES]
    curve = accuracy_curve(module, x, y, attack, radii, seed=replica.seed)
    found = {ROBUST: dict(curve)[attack.eps]}
    if attack.certify:
        found[VERIFIED] = verified_accuracy(module, x, y, attack)
    return result | {"metrics": metrics | found, "robustness": curve}


def _boosted(workload: Workload, tell: Tell, stop: Callable[[], bool]) -> Results | None:
    plan, dataset, results = workload.plan, workload.dataset, []
    table, target = workload.x.flatten(1).numpy(), Target(dataset.target, dataset.classes)
    for number, split in enumerate(plan.splits):
        if stop():
            return None
        tell(number)
        seed = derive_seed(plan.seed, OUTSIDE, split.fold, split.repeat)
        outputs = plan.task.outside(table, target, np.concatenate([split.fit, split.inner]), split.test, seed)
        found = evaluate(dataset, plan.metric, inner=None, test=(split.test, outputs))
        results.append(_named(plan, OUTSIDE, "default", number) | found | {"setting_number": 0, "inner_score": 0.0})
    return results


def _named(plan: Plan, objective: str, setting: str, split: int) -> dict[str, Any]:
    where = plan.splits[split]
    return {
        "objective": objective,
        "setting": setting,
        "fold": where.fold,
        "repeat": where.repeat,
        "dropped": False,
    }
