"""How the work of a few steps can be split, each way with the value, gradients and buffers of every step."""

import copy
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from lossworks.distributed import gather_rows
from lossworks.fused import linear_loss
from lossworks.objective import Objective
from lossworks.roles import Calibrator, Loss
from lossworks.testing.inputs import CLASSES, ROWS
from lossworks.testing.models import Batch, Model, batches_of, minds_repeats, setting_of

SHARES = {2: ((7, 5), (0, 12), (6, 6)), 3: ((5, 4, 3), (6, 0, 6), (4, 4, 4))}
MICRO_SHARES = ((5, 4, 3), (0, 7, 5), (6, 6))
REPLICAS = 3

Step = dict[str, Tensor]
Way = Callable[[Objective, nn.Module, Batch, int], Tensor]


def _shares(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    pieces = {name: tensor.split(list(sizes)) for name, tensor in batch.items()}
    return [{name: pieces[name][number] for name in batch} for number in range(len(sizes))]


def whole_batch(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """The truth that the other ways are held to."""
    value = objective(model, **batch)
    value.backward()
    return value


def in_micro_batches(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Gradient accumulation by what sees the whole batch first."""
    values = []
    for value in objective.micro_batches(model, _shares(batch, MICRO_SHARES[step % 3])):
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()


def by_total(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Gradient accumulation by what the mean divides by."""
    assert isinstance(objective.loss, Loss)
    total = objective.loss.total_of(batch["target"], batch["sample_weight"])
    values = []
    for part in _shares(batch, MICRO_SHARES[step % 3]):
        value = objective(model, **part, total=total)
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()


def in_chunks(objective: Objective, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """The last layer and the loss by the fused form, a few rows at a time."""
    assert isinstance(model, Model)
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


def over_ranks(objective: Objective, model: nn.Module, batch: Batch, step: int, *, micro: bool) -> Tensor:
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


def trained(part: nn.Module, dtype: torch.dtype, way: Way, *, repeats: bool = True) -> list[Step]:
    """Value, gradients and buffers of each step; rows come several times if that matters to the part."""
    repeats = repeats and minds_repeats(part)
    objective, model = setting_of(part, dtype)
    parameters = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.5)
    steps = []
    for number, batch in enumerate(batches_of(objective, dtype, repeats=repeats, ignored=True)):
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


def calibrated(
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


def on_a_rank(jobs: Sequence[tuple[str, nn.Module, torch.dtype]]) -> list[list[list[Step]]]:
    """What every job gives on this rank, in each way of training over ranks."""
    done = []
    for name, part, dtype in jobs:
        try:
            if isinstance(part, Calibrator):
                done.append([calibrated(part, dtype, _fit_gathered)])
                continue
            # How micro-batches are found doesn't hang on the precision.
            ways = [
                functools.partial(over_ranks, micro=micro)
                for micro in ((False, True) if dtype == torch.float64 else (False,))
            ]
            done.append([trained(part, dtype, way) for way in ways])
        except Exception as error:
            raise RuntimeError(f"{name} failed over processes: {error}") from error
    return done


def stacked(part: nn.Module, dtype: torch.dtype, *, ignored: bool) -> tuple[list[Step], list[Step]]:
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
        objective, model = setting_of(part, dtype)
        for parameter in model.parameters():
            parameter.data *= 1 + 0.1 * number
        replicas.append(_Trained(model, objective))
    base = copy.deepcopy(replicas[0])
    batches = batches_of(base.objective, dtype, repeats=minds_repeats(part), ignored=ignored)
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
        slopes = {name: torch.stack([g[i] for g in own]) for i, name in enumerate(names)}
        state = {name: torch.stack([dict(r.named_buffers())[name] for r in replicas]) for name in held}
        alone.append(_side_by_side(torch.stack(each), slopes, state))
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


def interrupted(part: nn.Module, dtype: torch.dtype) -> tuple[list[Step], list[Step]]:
    """A run that was stopped in the middle, saved, loaded into fresh objects and gone on with; and one that was not."""
    if isinstance(part, Calibrator):
        logits, target = _logits(dtype)
        fitted, fresh = copy.deepcopy(part).fit(logits, target), copy.deepcopy(part)
        fresh.load_state_dict(saved_and_loaded(fitted.state_dict()))
        return [_record(fresh(logits), logits, fresh)], [_record(fitted(logits), logits, fitted)]
    return _run(part, dtype, stop_after=2), _run(part, dtype, stop_after=None)


def _run(part: nn.Module, dtype: torch.dtype, stop_after: int | None) -> list[Step]:
    def fresh() -> tuple[Objective, nn.Module, torch.optim.Optimizer]:
        objective, model = setting_of(part, dtype)
        return objective, model, torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.05)

    objective, model, optimizer = fresh()
    torch.manual_seed(0)
    steps = []
    for number, batch in enumerate(2 * batches_of(objective, dtype, repeats=minds_repeats(part), ignored=True)):
        if number == stop_after:
            states = [objective.state_dict(), model.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
            states = saved_and_loaded(states)
            torch.manual_seed(1234)
            objective, model, optimizer = fresh()
            objective.load_state_dict(states[0])
            model.load_state_dict(states[1])
            optimizer.load_state_dict(states[2])
            torch.set_rng_state(states[3])
        optimizer.zero_grad()
        value = whole_batch(objective, model, batch, number)
        parameters = [*model.parameters(), *objective.parameters()]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        steps.append(_record(value, gradient, nn.ModuleDict({"objective": objective, "model": model})))
        optimizer.step()
    return steps


def saved_and_loaded(states: Any) -> Any:
    """As a file would give them back."""
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def differences(where: str, got: Sequence[Step], wanted: Sequence[Step], tolerance: float) -> list[str]:
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
