"""The work of a plan, group by group, apart from where it is done: a workload can be sent to another process."""

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


@dataclass(frozen=True)
class Workload:
    """All that the work of any group needs.

    Groups go by their number in the plan; the number after the last one's is the outside line's.

    Attributes:
        plan: What is to be trained.
        dataset: The data; its table is not looked at and may be empty.
        x: The encoded rows ``(n, *shape)``.
        architecture: What is trained.
        device: Where, on the machine that does the work.
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
        """Sent by the arrays below its tensors, which the receiver need not copy."""
        return _received, (self.plan, self.dataset, self.x.numpy(), self.architecture, str(self.device))

    @property
    def outside(self) -> int:
        """The outside line's number."""
        return len(self.plan.groups)

    def order(self) -> list[int]:
        """Every number in the order of the work: the reference, the outside line, then the rest."""
        first = [group.number for group in self.plan.groups if group.candidate == 0]
        rest = [group.number for group in self.plan.groups if group.candidate != 0]
        return [*first, self.outside, *rest]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """A unit a group of replicas, and one for the outside line."""
        plan = self.plan
        names = [plan.candidates[group.candidate].name for group in plan.groups]
        sizes = [len(group.replicas) for group in plan.groups]
        named = zip([*names, OUTSIDE], [*sizes, len(plan.splits)], strict=True)
        return tuple(
            Unit(name, derive_seed(plan.seed, name, number), size) for number, (name, size) in enumerate(named)
        )

    def own_code(self) -> list[Any]:
        """The user's own factory and objectives."""
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

        The same numbers come out wherever it runs: nothing is read but the workload.

        Args:
            number: The group's number, or :attr:`outside`.
            tell: Called with how many of the group's models' worth of work is done.
            stop: Asked now and then; when it says so, the work ends and None comes back.
            memory: About how many bytes the models in training may take; by default a share of what is free now. It
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
        results[0]["notes"] = [f"{results[0]['objective']}: {note}" for note in trained.short]
    return [results[number] for number in range(len(jobs))]


def _result(workload: Workload, group: Group, trained: Trained, number: int) -> dict[str, Any]:
    plan, dataset = workload.plan, workload.dataset
    replica, candidate = group.replicas[number], plan.candidates[group.candidate]
    split = plan.splits[replica.split]
    with one_thread():
        inner, test = (trained.outputs(number, torch.from_numpy(rows)).cpu() for rows in (split.inner, split.test))
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
    )


def _attacked(
    workload: Workload, attack: Attack, module: nn.Module, replica: Replica, result: dict[str, Any]
) -> dict[str, Any]:
    """The result with the accuracy under attack, and the curve over radii, of at most so many test rows."""
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
