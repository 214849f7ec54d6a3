"""Exact however the work is split: one batch whole, over processes, in micro-batches, in chunks, stacked, interrupted.

A part is put into an objective that trains a small model for some steps: with rows that come twice, rows that are
ignored, uneven and empty shares, and ranks without a row of some class. Value, gradients and buffers of every step must
be those of one process that was given each batch whole: to 1e-9 in float64 and to 1e-5 in float32.
"""

import contextlib
import copy
import functools
import inspect
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.utils import parametrize

from lossworks.calibrate.base import Calibrator
from lossworks.distributed import gather_rows
from lossworks.fused import linear_loss
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Part, Penalty, Perturbation, Weighting, asked_once
from lossworks.testing.inputs import CLASSES, ROWS, Recipe, instances
from lossworks.testing.ranks import Ranks

__all__ = ["COLUMNS", "Cell", "catalog_parts", "check_exactness", "exactness_matrix", "exactness_page", "why_not_exact"]

COLUMNS = ("2 processes", "3 processes", "micro-batches", "chunks", "vmap", "resume")
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
FEATURES = 4
MAPS = torch.Size([3, 2, 2])
SHARES = {2: ((7, 5), (0, 12), (6, 6)), 3: ((5, 4, 3), (6, 0, 6), (4, 4, 4))}
MICRO_SHARES = ((5, 4, 3), (0, 7, 5), (6, 6))
REPLICAS = 3

Batch = dict[str, Tensor]
Step = dict[str, Tensor]
Way = Callable[[Objective, nn.Module, Batch, int], Tensor]


class _Model(nn.Module):
    """A small network, with a layer under test in it, and one output a row as a vector where a part takes that."""

    def __init__(self, outputs: int, flat: bool, dtype: torch.dtype, layer: nn.Module | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, MAPS.numel()), nn.ReLU())
        self.head = nn.Linear(MAPS.numel(), outputs)
        self.flat = flat
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).div(2).to(dtype)
        self.layer = None if _is_parametrization(layer) else layer
        if layer is not None and self.layer is None:
            parametrize.register_parametrization(self.body[0], "weight", layer.to(dtype))

    def hidden(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.body(x)
        if self.layer is None:
            return hidden
        maps: Tensor = self.layer(hidden.unflatten(1, MAPS))
        drawn = maps.ndim > 1 + len(MAPS)
        return (maps.mean(dim=0) if drawn else maps).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.hidden(x))
        return output.squeeze(1) if self.flat else output


class _OfLosses(BatchLoss):
    """A number for a batch of losses, as a loss of its own."""

    kind = "classes"

    def __init__(self, risk: Part) -> None:
        super().__init__()
        self.risk = risk

    def forward(self, *inputs: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        value: Tensor = self.risk(CrossEntropyLoss(reduction="none")(*inputs))
        return value


def _takes(part: nn.Module) -> list[str]:
    """The names of what a part without a role is called on."""
    return list(inspect.signature(part.forward).parameters)


def _is_layer(part: nn.Module) -> bool:
    roles = (Loss, BatchLoss, Weighting, Perturbation, Penalty, Calibrator, Objective)
    return not isinstance(part, roles) and _takes(part) in (["x"], ["weight"])


def _is_parametrization(part: nn.Module | None) -> bool:
    """Whether it stands before a weight of the model and not between its layers."""
    return part is not None and _takes(part) == ["weight"]


def _setting(part: nn.Module, dtype: torch.dtype) -> tuple[Objective, _Model]:
    """The part in its role, beside cross-entropy where it is not a loss, and a model for it."""
    part = copy.deepcopy(part).train()
    layer = None
    if isinstance(part, Objective):
        objective = part
    elif isinstance(part, (Loss, BatchLoss)):
        objective = Objective(part)
    elif isinstance(part, Weighting):
        objective = Objective(CrossEntropyLoss(), part)
    elif isinstance(part, Perturbation):
        objective = Objective(CrossEntropyLoss(), perturb=part)
    elif isinstance(part, Penalty):
        objective = Objective(CrossEntropyLoss(), penalties=[part])
    elif _is_layer(part):
        objective, layer = Objective(CrossEntropyLoss()), part
    else:
        assert isinstance(part, Part)
        objective = Objective(_OfLosses(part))
    outputs = objective.loss.output_size(CLASSES)
    return objective, _Model(outputs, outputs == 1 and objective.loss.kind != "classes", dtype, layer)


def _stochastic(part: nn.Module) -> bool:
    return any(member.stochastic for member in part.modules() if isinstance(member, Part))


def _remembers(part: nn.Module) -> bool:
    return any(member.memories for member in part.modules() if isinstance(member, Part))


def _sees_the_whole(part: nn.Module) -> bool:
    """Whether it is asked once about the whole batch."""
    if isinstance(part, Objective):
        return part.loss.couples_batch or (part.weights is not None and asked_once(part.weights))
    if isinstance(part, Weighting):
        return asked_once(part)
    return isinstance(part, Part) and part.couples_batch and not _is_layer(part)


def _batches(objective: Objective, dtype: torch.dtype, *, repeats: bool, ignored: bool) -> list[Batch]:
    """A batch a step: with rows that come several times, and with ignored rows; the last sorted by class."""
    generator = torch.Generator().manual_seed(1)
    kind = objective.loss.kind
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    if kind == "classes":
        target = torch.arange(ROWS) % CLASSES
    elif kind == "binary":
        target = (torch.arange(ROWS) % 2).to(dtype)
    else:
        target = 2 * torch.randn(ROWS, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.linspace(0.5, 2, ROWS, dtype=dtype)
    batches = []
    for step in range(3):
        index = torch.randperm(ROWS, generator=generator)
        if repeats:
            # Rows that come twice or three times, in shares that are far apart.
            index[-1], index[6] = index[0], index[0]
            index[-2] = index[1]
        if step == 2:
            index = index[target[index].argsort(stable=True)]
        batch = {"x": x[index], "target": target[index].clone(), "index": index, "group": index % 3}
        if isinstance(objective.loss, Loss):
            batch["sample_weight"] = weight[index]
            if step == 1 and kind == "classes" and ignored:
                batch["target"][torch.tensor([1, 8])] = objective.loss.ignore_index
        batches.append(batch)
    return batches


def _shares(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    pieces = {name: tensor.split(list(sizes)) for name, tensor in batch.items()}
    return [{name: pieces[name][number] for name in batch} for number in range(len(sizes))]


def _whole(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    value = objective(model, **batch)
    value.backward()
    return value


def _micro(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    values = []
    for value in objective.micro_batches(model, _shares(batch, MICRO_SHARES[step % 3])):
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()


def _micro_with_total(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    assert isinstance(objective.loss, Loss)
    total = objective.loss.total_of(batch["target"], batch["sample_weight"])
    values = []
    for part in _shares(batch, MICRO_SHARES[step % 3]):
        value = objective(model, **part, total=total)
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()


def _in_chunks(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """The last layer and the loss by the fused form, a few rows at a time."""
    assert isinstance(model, _Model)
    assert isinstance(objective.loss, Loss)
    columns = {name: tensor for name, tensor in batch.items() if name != "x"}
    if model.flat:
        target = columns.pop("target")[:, None]
        shape = objective.loss.rows(torch.zeros_like(target), target)[0].shape
        columns = {"target": target, **{name: column.reshape(shape) for name, column in columns.items()}}
    value = linear_loss(
        model.hidden(batch["x"]),
        model.head.weight,
        columns.pop("target"),
        objective.loss,
        bias=model.head.bias,
        weights=objective.weights,
        sample_weight=columns.pop("sample_weight"),
        index=columns.pop("index"),
        group=columns.pop("group"),
        ignore_index=objective.loss.ignore_index,
        chunk=5,
    )
    value.backward()
    return value


def _over_ranks(objective: Objective, model: nn.Module, batch: Batch, step: int, *, micro: bool) -> Tensor:
    """This rank's share, then the mean over ranks of value and gradients, as data-parallel training takes it."""
    group, size = dist.group.WORLD, dist.get_world_size()
    own = _shares(batch, SHARES[size][step % 3])[dist.get_rank()]
    if micro:
        rows = len(own["x"])
        parts = _shares(own, (rows // 2, rows - rows // 2))
        values = []
        for value in objective.micro_batches(model, parts, process_group=group):
            value.backward()
            values.append(value.detach())
        value = torch.stack(values).sum()
    else:
        value = objective(model, **own, process_group=group)
        value.backward()
        value = value.detach().clone()
    parameters = [*model.parameters(), *objective.parameters()]
    # One collective for all of them, as what is to be tested is not the averaging.
    own_gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([value.reshape(1), *(gradient.flatten() for gradient in own_gradients)])
    dist.all_reduce(flat)
    value, *gradients = (flat / size).split([1, *(parameter.numel() for parameter in parameters)])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
    return value.reshape(())


def _train(part: nn.Module, dtype: torch.dtype, way: Way, *, repeats: bool = True) -> list[Step]:
    """Value, gradients and buffers of each step; rows that come several times matter to a memory."""
    repeats = repeats and _remembers(part)
    objective, model = _setting(part, dtype)
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.5)
    steps = []
    for number, batch in enumerate(_batches(objective, dtype, repeats=repeats, ignored=True)):
        # Ranks whose generators are in one state, as what they draw together asks for.
        torch.manual_seed(number)
        optimizer.zero_grad()
        value = way(objective, model, batch, number)
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        steps.append(_record(value, gradient, nn.ModuleDict({"objective": objective, "model": model})))
        optimizer.step()
    return steps


def _record(value: Tensor, gradient: Tensor, objective: nn.Module) -> Step:
    buffers = {f"buffer {name}": buffer.detach().clone() for name, buffer in objective.named_buffers()}
    return {"value": value.detach().clone(), "gradient": gradient.detach().clone(), **buffers}


def _calibrate(
    calibrator: Calibrator, dtype: torch.dtype, fit: Callable[[Calibrator, Tensor, Tensor], None]
) -> list[Step]:
    """The calibrated logits and what was fitted."""
    calibrator = copy.deepcopy(calibrator)
    logits, target = _logits(dtype)
    fit(calibrator, logits, target)
    return [_record(calibrator(logits), torch.zeros(()), calibrator)]


def _logits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64).to(dtype)
    return logits, torch.randint(CLASSES, (ROWS,), generator=generator)


def _fit_gathered(calibrator: Calibrator, logits: Tensor, target: Tensor) -> None:
    sizes = list(SHARES[dist.get_world_size()][0])
    own, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    calibrator.fit(gather_rows(logits.split(sizes)[own], group), gather_rows(target.split(sizes)[own], group))


def _on_a_rank(jobs: Sequence[tuple[str, nn.Module, torch.dtype]]) -> list[list[list[Step]]]:
    """What every job gives on this rank, in each way of training over ranks."""
    done = []
    for name, part, dtype in jobs:
        try:
            if isinstance(part, Calibrator):
                done.append([_calibrate(part, dtype, _fit_gathered)])
                continue
            # How micro-batches are found doesn't hang on the precision.
            ways = [
                functools.partial(_over_ranks, micro=micro)
                for micro in ((False, True) if dtype == torch.float64 else (False,))
            ]
            done.append([_train(part, dtype, way) for way in ways])
        except Exception as error:
            raise RuntimeError(f"{name} failed over processes: {error}") from error
    return done


def _stacked(part: nn.Module, dtype: torch.dtype, *, ignored: bool) -> tuple[list[Step], list[Step]]:
    """Several models trained under ``vmap``, and each of them alone; their steps side by side."""
    if isinstance(part, Calibrator):
        logits, target = _logits(dtype)
        fitted = copy.deepcopy(part).fit(logits, target)
        stack = torch.stack([logits, 2 * logits, -logits])
        none = torch.zeros(())
        one_by_one = torch.stack([fitted(one) for one in stack])
        return [_record(vmap(fitted)(stack), none, fitted)], [_record(one_by_one, none, fitted)]
    replicas = []
    for number in range(REPLICAS):
        objective, model = _setting(part, dtype)
        for parameter in model.parameters():
            parameter.data *= 1 + 0.1 * number
        replicas.append(_Trained(model, objective))
    base = copy.deepcopy(replicas[0])
    batches = _batches(base.objective, dtype, repeats=_remembers(part), ignored=ignored)
    weights, buffers = stack_module_state(replicas)
    held = {name: tensor.detach().clone() for name, tensor in buffers.items()}
    weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def value(parameters: Step, state: Step, batch: Batch) -> tuple[Tensor, Step]:
        used = {**parameters, **state}
        result = functional_call(base, used, (), batch)
        return result, {name: used[name] for name in state}

    together: list[Step] = []
    alone: list[Step] = []
    for batch in batches:
        gradients, (values, held) = vmap(grad_and_value(value, has_aux=True), (0, 0, None), randomness="different")(
            weights, held, batch
        )
        together.append(_side_by_side(values, gradients, held))
        weights = {name: tensor - 0.05 * gradients[name] for name, tensor in weights.items()}
        each = [replica(**batch) for replica in replicas]
        own = [torch.autograd.grad(one, list(r.parameters())) for one, r in zip(each, replicas, strict=True)]
        names = [name for name, _ in base.named_parameters()]
        stacked = {name: torch.stack([g[i] for g in own]) for i, name in enumerate(names)}
        state = {name: torch.stack([dict(r.named_buffers())[name] for r in replicas]) for name in held}
        alone.append(_side_by_side(torch.stack(each), stacked, state))
        for replica, gradient in zip(replicas, own, strict=True):
            for parameter, slope in zip(replica.parameters(), gradient, strict=True):
                parameter.data -= 0.05 * slope
    return together, alone


class _Trained(nn.Module):
    """Model and objective as one, so that all their tensors can be stacked."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, **batch: Tensor) -> Tensor:
        result = self.objective(self.model, **batch)
        assert isinstance(result, Tensor)
        return result


def _side_by_side(values: Tensor, gradients: Step, buffers: Step) -> Step:
    slopes = torch.cat([gradients[name].reshape(REPLICAS, -1) for name in sorted(gradients)], dim=1)
    kept = {f"buffer {name}": buffer.detach().clone() for name, buffer in buffers.items()}
    return {"value": values.detach(), "gradient": slopes.detach(), **kept}


def _interrupted(part: nn.Module, dtype: torch.dtype) -> tuple[list[Step], list[Step]]:
    """A run that was stopped in the middle, saved, loaded into fresh objects and gone on with; and one that was not."""
    if isinstance(part, Calibrator):
        logits, target = _logits(dtype)
        fitted, fresh = copy.deepcopy(part).fit(logits, target), copy.deepcopy(part)
        fresh.load_state_dict(_saved_and_loaded(fitted.state_dict()))
        return [_record(fresh(logits), logits, fresh)], [_record(fitted(logits), logits, fitted)]
    return _run(part, dtype, stop_after=2), _run(part, dtype, stop_after=None)


def _run(part: nn.Module, dtype: torch.dtype, stop_after: int | None) -> list[Step]:
    def fresh() -> tuple[Objective, nn.Module, torch.optim.Optimizer]:
        objective, model = _setting(part, dtype)
        return objective, model, torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.05)

    objective, model, optimizer = fresh()
    torch.manual_seed(0)
    steps = []
    for number, batch in enumerate(2 * _batches(objective, dtype, repeats=_remembers(part), ignored=True)):
        if number == stop_after:
            states = [objective.state_dict(), model.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
            states = _saved_and_loaded(states)
            torch.manual_seed(1234)
            objective, model, optimizer = fresh()
            objective.load_state_dict(states[0])
            model.load_state_dict(states[1])
            optimizer.load_state_dict(states[2])
            torch.set_rng_state(states[3])
        optimizer.zero_grad()
        value = _whole(objective, model, batch, number)
        parameters = [*model.parameters(), *objective.parameters()]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        steps.append(_record(value, gradient, nn.ModuleDict({"objective": objective, "model": model})))
        optimizer.step()
    return steps


def _saved_and_loaded(states: Any) -> Any:
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _differences(where: str, got: Sequence[Step], wanted: Sequence[Step], tolerance: float) -> list[str]:
    """The first step's numbers that don't agree, relative to the largest of their kind where that is above 1."""
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        wrong = []
        for name, truth in other.items():
            if one[name].shape != truth.shape:
                wrong.append(f"{where}: {name} of step {number} has another shape")
            elif truth.numel():
                scale = max([1.0, *truth[truth.isfinite()].double().abs().tolist()])
                gaps = torch.where(one[name] == truth, 0, (one[name].double() - truth.double()).abs())
                error = float(gaps.max()) / scale
                if not error <= tolerance:
                    wrong.append(f"{where}: {name} of step {number} is off by {error:.0e}")
        if wrong:
            return wrong
    return []


class Cell(NamedTuple):
    """Whether a part is exact in a column, and what there is to say to it."""

    exact: bool
    note: str = ""

    def __str__(self) -> str:
        return f"exact{': ' if self.note else ''}{self.note}" if self.exact else self.note


def why_not_exact(part: nn.Module, column: str) -> str | None:
    """Why the part is by nature not exact in a column, or has no place in it; None where it must be exact."""
    split = column in ("2 processes", "3 processes", "micro-batches")
    if isinstance(part, Calibrator):
        return "fitted once, after training, on all rows" if column in ("micro-batches", "chunks") else None
    if column == "chunks":
        if isinstance(part, Perturbation) or (isinstance(part, Objective) and part.perturb is not None):
            return "changes the input, before there are outputs to take in chunks"
        if isinstance(part, Penalty) or _is_layer(part):
            return "reads or changes the model, not the outputs"
        if not isinstance(part, Weighting) and not (isinstance(part, Loss) and part.rowwise):
            return "the value of a row reads more than its own outputs"
    if split and _is_layer(part) and isinstance(part, Part) and part.couples_batch:
        return "a layer of the model, which takes its statistics from the rows that it is given"
    if split and _stochastic(part) and not _draws_for_all(part):
        return "draws for the rows that it is given, so a split batch gets other draws"
    if column == "vmap" and _stochastic(part):
        return "stacked draws are not those that each would make alone"
    return None


def _draws_for_all(part: nn.Module) -> bool:
    """Whether all its draws are made at once, about the whole batch."""
    return isinstance(part, Penalty) or (_sees_the_whole(part) and not isinstance(part, Objective))


def _note(part: nn.Module, column: str) -> str:
    """What must be known to have it exact in a column."""
    if column.endswith("processes"):
        if isinstance(part, Calibrator):
            return "fitted on rows gathered by `lossworks.distributed.gather_rows`"
        if _stochastic(part):
            return "with the ranks' random generators in one state"
    if column == "micro-batches":
        if _sees_the_whole(part):
            return "by `Objective.micro_batches`, which sees the whole batch first; `total=` alone is another objective"
        if _remembers(part):
            return "by `total=` too, unless a row comes twice in one batch: `Objective.micro_batches` merges the two"
    if column == "vmap" and isinstance(part, Weighting) and _sees_the_whole(part):
        return "except that ignored rows can't be left out there: each counts as a row of loss 0"
    return ""


def check_exactness(part: nn.Module, ranks: Sequence[Ranks] | None = None) -> dict[str, str]:
    """Hold a part to the same value, gradients and buffers however the work is split.

    Starts processes of its own (some seconds), or uses those it is given.

    Args:
        part: A part in any role, or an objective, as it would be used; it is copied. One without a role is taken for a
            layer of the model where it is called on ``x`` alone, maps ``(n, 3, 2, 2)``, and is called on losses else;
            of a layer that gives several draws, ``(m, n, 3, 2, 2)``, the mean goes on.
        ranks: Groups of 2 and 3 processes.

    Returns:
        For each of :data:`COLUMNS`, ``"exact"`` (and what must be known to have it so), or the reason why it is by
        nature not, which follows from what the part declares.

    Raises:
        AssertionError: where it is not exact, with the step, the number and by how much.
    """
    if not isinstance(part, (Part, Objective)):
        raise TypeError(f"part must be a lossworks part, got {type(part).__name__}")
    name = type(part).__name__
    with contextlib.ExitStack() as stack:
        if ranks is None:
            ranks = [stack.enter_context(Ranks(size)) for size in sorted(SHARES)]
        return {column: str(cell) for column, cell in exactness_matrix({name: [part]}, ranks)[name].items()}


def catalog_parts() -> dict[str, list[nn.Module]]:
    """Every part of the catalog in each of its settings, but the fused layers, which take their own steps."""
    from lossworks.catalog import parts

    roles = {name: entry for name, entry in parts().items() if _has_a_role(entry.part)}
    return {name: list(instances(entry.part)) for name, entry in roles.items() if entry.role != "fused form"}


def _has_a_role(part: Any) -> bool:
    """Whether it is a class of what stands in an objective or a model."""
    return inspect.isclass(part) and issubclass(part, (Part, Objective))


def exactness_matrix(parts: Mapping[str, Sequence[nn.Module]], ranks: Sequence[Ranks]) -> dict[str, dict[str, Cell]]:
    """Measure parts, each in some settings, in every column.

    Raises:
        AssertionError: all that is not exact although it must be.
    """
    named = [(name, part, dtype) for name, settings in parts.items() for part in settings for dtype in TOLERANCES]
    spread = [job for job in named if why_not_exact(job[1], "2 processes") is None]
    for group in ranks:
        group.send(_on_a_rank, spread)
    wrong: list[str] = []
    whole: list[list[Step]] = []
    try:
        with torch.random.fork_rng(devices=[]):
            for name, part, dtype in named:
                truth = _truth(part, dtype)
                if why_not_exact(part, "2 processes") is None:
                    whole.append(truth)
                for way, got, wanted in _in_this_process(part, dtype, truth):
                    wrong += _differences(f"{_titled(name, dtype)} {way}", got, wanted, _tolerance(dtype, way))
    finally:
        answers = [group.receive() for group in ranks]
    for group, each in zip(ranks, answers, strict=True):
        for rank, done in enumerate(each):
            for (name, _, dtype), truth, ways in zip(spread, whole, done, strict=True):
                where = f"{_titled(name, dtype)} on rank {rank} of {group.size}"
                for way, steps in zip(("", ", in micro-batches"), ways, strict=False):
                    wrong += _differences(where + way, steps, truth, TOLERANCES[dtype])
    assert not wrong, "not exact:\n" + "\n".join(wrong)
    return {name: {column: _cell(settings, column) for column in COLUMNS} for name, settings in parts.items()}


def _cell(settings: Sequence[nn.Module], column: str) -> Cell:
    reasons = [why_not_exact(part, column) for part in settings]
    if any(reasons):
        return Cell(False, next(reason for reason in reasons if reason))
    return Cell(True, next((note for note in (_note(part, column) for part in settings) if note), ""))


def _truth(part: nn.Module, dtype: torch.dtype) -> list[Step]:
    if isinstance(part, Calibrator):
        return _calibrate(part, dtype, lambda calibrator, logits, target: _fit(calibrator, logits, target))
    return _train(part, dtype, _whole)


def _fit(calibrator: Calibrator, logits: Tensor, target: Tensor) -> None:
    calibrator.fit(logits, target)


def _in_this_process(
    part: nn.Module, dtype: torch.dtype, truth: list[Step]
) -> Iterator[tuple[str, list[Step], list[Step]]]:
    """The columns that need one process only: in what way, what came and what was wanted."""
    alone = _train(part, dtype, _whole, repeats=False) if _remembers(part) else truth
    if why_not_exact(part, "micro-batches") is None:
        yield "in micro-batches", _train(part, dtype, _micro), truth
        if not _sees_the_whole(part):
            yield "in micro-batches with total=", _train(part, dtype, _micro_with_total, repeats=False), alone
    if why_not_exact(part, "chunks") is None:
        yield "in chunks", _train(part, dtype, _in_chunks, repeats=False), alone
    if why_not_exact(part, "vmap") is None:
        yield "under vmap", *_stacked(part, dtype, ignored=not _sees_the_whole(part))
    yield "after a stop", *_interrupted(part, dtype)


def _titled(name: str, dtype: torch.dtype) -> str:
    return f"{name} ({str(dtype).removeprefix('torch.')})"


def _tolerance(dtype: torch.dtype, way: str) -> float:
    return 0.0 if way == "after a stop" else TOLERANCES[dtype]


def exactness_page(matrix: Mapping[str, Mapping[str, Cell]], parts: Mapping[str, Sequence[nn.Module | Recipe]]) -> str:
    """The matrix as a page of the site."""
    notes: dict[str, int] = {}
    tables: dict[str, list[str]] = {}
    roles = list(dict.fromkeys(_role(settings[0]) for settings in parts.values()))
    for name in sorted(matrix, key=lambda name: roles.index(_role(parts[name][0]))):
        row, part, cells = matrix[name], parts[name][0], []
        for column in COLUMNS:
            cell = row[column]
            number = f"[{notes.setdefault(cell.note, len(notes) + 1)}]" if cell.note else ""
            cells.append(f"exact {number}".strip() if cell.exact else number)
        tables.setdefault(_role(part), []).append(f"| `{name}` | {len(parts[name])} | {' | '.join(cells)} |")
    lines = ["# Exactness", INTRODUCTION]
    for role, rows in tables.items():
        head = [f"| {role} | settings | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
        lines.append("\n".join([*head, *rows]))
    lines.append("## Notes")
    lines.append("\n".join(f"{number}. {note[0].upper()}{note[1:]}." for note, number in notes.items()))
    lines.append("## What the docstrings say")
    lines.append("Of each part that a split changes, or that must see the whole batch:")
    lines.append("\n".join(f"- `{name}`: {said}" for name in matrix if (said := said_of_splits(parts[name][0]))))
    return "\n\n".join(lines) + "\n"


INTRODUCTION = """
A training run gives the same numbers however its work is split. Every part of the catalog, in every setting that it
declares, trains a small model for some steps in each of these ways, and value, gradients and buffers of every step are
compared with those of one process that was given each batch whole: *exact* is a difference of at most 1e-9 in float64
and 1e-5 in float32, and none at all for *resume*. The batches are the awkward kind: rows that come twice, rows that are
ignored, sample weights, uneven and empty shares, ranks without a row of some class. Of an optimizer the weights after
each step are compared in place of gradients and buffers. A number refers to what must be known; alone, to why the part
is by nature not exact there, or has no place there.

- **2 and 3 processes**: real ones, over gloo, each with its rows and `process_group=`, whole and in micro-batches.
- **micro-batches**: gradient accumulation by `Objective.micro_batches`, and by `total=` where the rows stand alone.
- **chunks**: the last layer and the loss a chunk of rows at a time, so that the outputs are never there as a whole.
- **vmap**: three models stacked under `torch.func.vmap`, against each alone.
- **resume**: stopped in the middle of several steps with an optimizer, saved, loaded into fresh objects, gone on with.

Hold a part of your own to it with `lossworks.testing.check_exactness(part)`. The tests fail when this page isn't what
they measure; `python -m lossworks.testing --write docs/exactness.md` draws it anew.
""".strip()


def _role(part: nn.Module | Recipe) -> str:
    if isinstance(part, Recipe):
        return "optimizer"
    roles = {
        Loss: "loss",
        BatchLoss: "loss",
        Weighting: "weighting",
        Perturbation: "perturbation",
        Penalty: "penalty",
        Objective: "objective",
        Calibrator: "calibrator",
    }
    found = next((name for role, name in roles.items() if isinstance(part, role)), None)
    return found or ("layer" if _is_layer(part) else "risk")


SAYS_SO = re.compile(r"\b(split|splits|ranks|micro-batch|micro-batches)\b")


def said_of_splits(part: nn.Module | Recipe) -> str:
    """The sentences of a part's docstring about what a split does to it, if it is not exact by itself everywhere."""
    described = part.wrapper if isinstance(part, Recipe) else type(part)
    if isinstance(part, Calibrator):
        return ""
    if isinstance(part, nn.Module):
        couples = _sees_the_whole(part) or getattr(part, "couples_batch", False)
        if not (_stochastic(part) or _remembers(part) or couples):
            return ""
    purpose = (inspect.getdoc(described) or "").split("Args:")[0]
    text = " ".join(re.sub(r"\.\. math::\n(?: +.*\n|\n)+", "", purpose).split())
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z:`])", text)
    said = " ".join(sentence for sentence in sentences if SAYS_SO.search(sentence))
    return re.sub(r":\w+:`~?\.?([^`]*)`", r"`\1`", said).replace("``", "`")
