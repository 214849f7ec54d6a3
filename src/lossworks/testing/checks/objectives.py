"""The checks of a whole objective, on a small model with modes and buffers."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lossworks.objective import Objective
from lossworks.roles import Loss
from lossworks.testing.checks.every import leaves
from lossworks.testing.inputs import CLASSES, ROWS, expect_error
from lossworks.testing.models import FEATURES, Batch, batches_of, is_flat

__all__ = [
    "clear_errors",
    "dtype_kept",
    "finite_value",
    "gradient_exact",
    "gradient_reaches_the_weights",
    "leaves_model_alone",
    "micro_batches_add_up",
    "reduction_none",
    "refuses_rows",
    "row_weights_count",
    "sample_weights_are_relative",
    "total_adds_up",
    "trains_finite",
    "used",
    "weight_zero_is_absent",
    "works_in_inference_mode",
]

HUGE = 1e6
STEP = 1e-6
STEPS = 12


def _model(objective: Objective, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    outputs = objective.loss.output_size(CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, outputs)]
        flat = [nn.Flatten(0)] if is_flat(objective.loss, outputs) else []
        return _in_mode(nn.Sequential(*layers, *flat).to(dtype), True)


def _in_mode(model: nn.Sequential, training: bool) -> nn.Sequential:
    """The model in a mode, with its normalisation in evaluation mode: some objectives want rows to stand alone."""
    model.train(training)
    model[1].eval()
    return model


def _batch(objective: Objective, dtype: torch.dtype = torch.float64) -> Batch:
    return batches_of(objective, dtype, repeats=False, ignored=False)[0]


def _call(objective: Objective, model: nn.Module, batch: Batch, **more: Any) -> Tensor:
    """The objective, always with the same draws."""
    torch.manual_seed(0)
    value: Tensor = objective(model, **batch, **more)
    return value


def used(objective: Objective) -> list[Tensor]:
    """The objective of the example's model, and its gradient."""
    model = _model(objective)
    value = objective(model, **_batch(objective))
    return [value, *torch.autograd.grad(value, list(model.parameters()))]


def works_in_inference_mode(objective: Objective) -> None:
    """Rows made under ``torch.inference_mode()`` are trained on as ordinary ones are, in micro-batches too."""
    model, batch = _model(objective), _batch(objective)
    with torch.inference_mode():
        made_inside = {name: column.clone() for name, column in batch.items()}

    def trained(rows: Batch, in_parts: bool) -> list[Tensor]:
        own = copy.deepcopy(objective)
        torch.manual_seed(0)
        value = next(iter(own.micro_batches(model, [rows]))) if in_parts else own(model, **rows)
        return [value, *torch.autograd.grad(value, list(model.parameters()), allow_unused=True)]

    for in_parts in (False, True):
        got, wanted = trained(made_inside, in_parts), trained(batch, in_parts)
        for one, right in zip(got, wanted, strict=True):
            assert_close(one, right, msg="rows made under inference mode give another answer: {}".format)


def finite_value(objective: Objective) -> None:
    """The value is one finite number in training and in evaluation mode, also of inputs that are large."""
    batch = _batch(objective)
    for training in (True, False):
        for scale in (1.0, 100.0):
            own, model = copy.deepcopy(objective).train(training), _in_mode(_model(objective), training)
            value = _call(own, model, {**batch, "x": scale * batch["x"]})
            assert value.shape == (), f"the value must be one number, it has shape {tuple(value.shape)}"
            assert bool(value.isfinite()), f"the value is {value.item()} where inputs are scaled by {scale:g}"


def trains_finite(objective: Objective) -> None:
    """Over a dozen steps of training value and gradients stay finite."""
    own, model = copy.deepcopy(objective).train(), _model(objective)
    parameters = [*model.parameters(), *(p for p in own.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    batches = batches_of(own, torch.float64, repeats=False, ignored=False)
    for number in range(STEPS):
        optimizer.zero_grad()
        torch.manual_seed(number)
        value = own(model, **batches[number % len(batches)])
        assert bool(value.isfinite()), f"the value is {value.item()} at step {number}"
        value.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in gradients), f"a gradient is not finite at step {number}"
        optimizer.step()


def dtype_kept(objective: Objective) -> None:
    """A model and rows in float32 have an objective in float32, near that in float64."""
    values = []
    for dtype in (torch.float32, torch.float64):
        own, model = copy.deepcopy(objective).eval(), _model(objective, dtype).eval()
        values.append(_call(own, model, _batch(objective, dtype)).detach())
        assert values[-1].dtype == dtype, f"a model in {dtype} has an objective in {values[-1].dtype}"


@contextmanager
def _choices_held(objective: Objective, run: Callable[[], object]) -> Iterator[None]:
    """The perturbed inputs and the weights as they were found in a run: by the envelope theorem they don't move."""
    held: dict[str, list[Any]] = {"_perturbed": [], "weigh": []}
    for name, found in held.items():
        method = getattr(objective, name)

        def recording(*given: Any, _method: Any = method, _found: list[Any] = found, **columns: Any) -> Any:
            _found.append(_method(*given, **columns))
            return _found[-1]

        objective.__dict__[name] = recording
    try:
        run()
        for name, found in held.items():
            objective.__dict__[name] = _Repeated(found)
        yield
    finally:
        for name in held:
            del objective.__dict__[name]


class _Repeated:
    """Gives the values one after the other, over and over."""

    def __init__(self, values: list[Any]) -> None:
        self.values, self.asked = values, 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        return self.values[(self.asked - 1) % len(self.values)]


def gradient_exact(objective: Objective) -> None:
    """The gradient in the model's weights is the derivative, with draws, perturbed inputs and weights held fixed."""
    own, model, batch = copy.deepcopy(objective).eval(), _model(objective).eval(), _batch(objective)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(2)
    with _choices_held(own, lambda: _call(own, model, batch)):
        gradients = torch.autograd.grad(_call(own, model, batch), parameters)
        for _ in range(3):
            along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
            slope = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True))
            values = []
            for sign in (1, -1):
                moved = copy.deepcopy(model)
                for p, d in zip(moved.parameters(), along, strict=True):
                    p.data += sign * STEP * d
                values.append(float(_call(own, moved, batch).detach()))
            difference = (values[0] - values[1]) / (2 * STEP)
            off = abs(slope - difference)
            assert off <= 1e-5 * max(1.0, abs(difference)), f"a slope of {difference:g} has a gradient of {slope:g}"


def gradient_reaches_the_weights(objective: Objective) -> None:
    """Every weight of the model gets a finite gradient, and not all of them 0."""
    model = _model(objective)
    _call(copy.deepcopy(objective), model, _batch(objective)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert bool(parameter.grad.isfinite().all()), f"the gradient in {name} is not finite"
    assert any(bool((p.grad != 0).any()) for p in model.parameters() if p.grad is not None), "all gradients are 0"


def leaves_model_alone(objective: Objective) -> None:
    """Each module is in the mode that it was in, and in evaluation mode no weight, buffer or gradient changes."""
    model = _model(objective)
    before = [module.training for module in model.modules()]
    batch = _batch(objective)
    given = {name: column.clone() for name, column in batch.items()}
    _call(copy.deepcopy(objective), model, batch)
    assert [module.training for module in model.modules()] == before, "a module of the model is in another mode"
    model.eval()
    state = copy.deepcopy(dict(leaves(model)))
    _call(copy.deepcopy(objective).train(), model, batch)
    for name, tensor in leaves(model):
        assert tensor is state[name] or torch.equal(torch.as_tensor(tensor), torch.as_tensor(state[name])), (
            f"{name.lstrip('.')} of the model changed"
        )
    for name, column in batch.items():
        assert torch.equal(column, given[name]), f"{name} was changed in place"


def _of_rows(objective: Objective, reduction: str) -> Objective:
    own = copy.deepcopy(objective).eval()
    own.loss.reduction = reduction
    return own


def reduction_none(objective: Objective) -> None:
    """``reduction="none"`` gives one number a row, whose weighted mean is the value without penalties."""
    model, batch = _model(objective).eval(), _batch(objective)
    each = _call(_of_rows(objective, "none"), model, batch)
    assert each.shape == (ROWS,), f"{ROWS} rows have values of shape {tuple(each.shape)}"
    whole = _of_rows(objective, "mean")
    whole.penalties = nn.ModuleList()
    assert_close(each.sum() / batch["sample_weight"].sum(), _call(whole, model, batch))


def row_weights_count(objective: Objective) -> None:
    """``row_weights=`` stand in the place of the weights: each multiplies its row."""
    model, batch = _model(objective).eval(), _batch(objective)
    weights = torch.linspace(0, 2, ROWS, dtype=torch.float64)
    ones = _call(_of_rows(objective, "none"), model, batch, row_weights=torch.ones_like(weights))
    assert_close(_call(_of_rows(objective, "none"), model, batch, row_weights=weights), weights * ones)


def sample_weights_are_relative(objective: Objective) -> None:
    """Sample weights of twice the size are the same weights."""
    model, batch = _model(objective).eval(), _batch(objective)
    twice = {**batch, "sample_weight": 2 * batch["sample_weight"]}
    assert_close(_call(_of_rows(objective, "mean"), model, twice), _call(_of_rows(objective, "mean"), model, batch))


class _Holed(nn.Module):
    """A model whose outputs are NaN in rows that hold a huge number."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        marked = (x.flatten(1).abs() > HUGE).any(dim=1)
        return torch.where(marked.reshape(-1, *(1 for _ in output.shape[1:])), torch.nan, output)


def _holed(objective: Objective) -> nn.Module:
    """The example's model, with holes in its outputs unless the objective looks at its layers."""
    model = _Holed(_model(objective).eval())
    try:
        _call(copy.deepcopy(objective), model, _batch(objective))
    except TypeError:
        return model.model
    return model


def weight_zero_is_absent(objective: Objective) -> None:
    """A row of sample weight 0 is as if it were absent, also if the model's output is NaN there, whole and in parts."""
    batch = _batch(objective)
    keep = torch.arange(ROWS) % 3 != 1
    weight = torch.where(keep, torch.linspace(0.5, 2, ROWS, dtype=torch.float64), 0)
    x = torch.where(keep.reshape(-1, *(1 for _ in batch["x"].shape[1:])), batch["x"], 100 * HUGE)
    holed = {**batch, "x": x, "sample_weight": weight}
    fewer = {name: column[keep] for name, column in {**batch, "sample_weight": weight}.items()}
    parts = [{name: column[rows] for name, column in holed.items()} for rows in (slice(0, 5), slice(5, None))]
    found = []
    for given in (fewer, holed, parts):
        own, model = copy.deepcopy(objective).train(), _holed(objective)
        torch.manual_seed(0)
        values = own.micro_batches(model, given) if isinstance(given, list) else [own(model, **given)]
        summed = torch.zeros((), dtype=torch.float64)
        for value in values:
            value.backward()
            summed = summed + value.detach()
        found.append([summed, *(p.grad for p in model.parameters()), *own.loss.buffers()])
    for name, other in (("whole", found[1]), ("in parts", found[2])):
        for one, right in zip(other, found[0], strict=True):
            assert_close(one, right, msg=partial("the batch {name}: {}".format, name=name))


def total_adds_up(objective: Objective) -> None:
    """With ``total=`` the values of micro-batches add up to the whole batch's."""
    model, batch = _model(objective).eval(), _batch(objective)
    own = _of_rows(objective, "mean")
    assert isinstance(own.loss, Loss)
    total = own.loss.total_of(batch["target"], batch["sample_weight"])
    parts = [{name: column[rows] for name, column in batch.items()} for rows in (slice(0, 5), slice(5, None))]
    summed = torch.stack([_call(own, model, part, total=total) for part in parts]).sum()
    assert_close(summed, _call(own, model, batch))


def micro_batches_add_up(objective: Objective) -> None:
    """The values that ``micro_batches`` gives add up to the whole batch's, and so do the gradients."""
    batch = _batch(objective)
    parts = [{name: column[rows] for name, column in batch.items()} for rows in (slice(0, 5), slice(5, None))]
    models = [_model(objective).eval() for _ in range(2)]
    whole = _call(copy.deepcopy(objective).eval(), models[0], batch)
    whole.backward()
    torch.manual_seed(0)
    summed = torch.zeros((), dtype=torch.float64)
    for value in copy.deepcopy(objective).eval().micro_batches(models[1], parts):
        value.backward()
        summed = summed + value.detach()
    assert_close(summed, whole.detach())
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(other.grad, one.grad)


def refuses_rows(objective: Objective) -> None:
    """A loss that couples its batch refuses ``total=`` and ``row_weights=``, which split a mean over rows."""
    model, batch = _model(objective), _batch(objective)
    for name, given in (("total", torch.tensor(12.0)), ("row_weights", torch.ones(ROWS))):
        expect_error(name, partial(_call, copy.deepcopy(objective), model, batch, **{name: given}))


def clear_errors(objective: Objective) -> None:
    """Targets, weights and indices that do not fit raise errors that name them."""
    model, batch = _model(objective), _batch(objective)
    wrong: list[tuple[str, Tensor | None]] = [("target", batch["target"][:-1])]
    if "sample_weight" in batch:
        wrong += [("sample_weight", -batch["sample_weight"]), ("sample_weight", batch["sample_weight"][:-1])]
    if objective.loss.needs_index:
        wrong += [("index", None), ("index", batch["index"].double())]
    for name, given in wrong:
        expect_error(name, partial(_call, copy.deepcopy(objective), model, {**batch, name: given}))  # type: ignore[dict-item]
