"""The checks of a change of the input."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lossworks.roles import Consistency, Perturbation
from lossworks.testing.inputs import CLASSES, ROWS, expect_error

__all__ = [
    "Noisy",
    "bad_slopes_stay_in_their_row",
    "clear_errors",
    "empty_batch",
    "leaves_model_alone",
    "never_helps_the_model",
    "no_graph",
    "order_of_rows_is_nothing",
    "price_of_nothing_is_nothing",
    "rows_stand_alone",
    "same_shape_and_dtype",
    "says_where_it_begins",
    "used",
    "vmaps",
    "works_in_inference_mode",
]


class Noisy(nn.Module):
    """A small model with a mode, buffers and gradients that a part could disturb."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(4, 8)
            self.rest = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        """One number a row."""
        result: Tensor = self.rest(self.first(x)).squeeze(1)
        return result


def _squares(inputs: Tensor) -> Tensor:
    return inputs.flatten(1).pow(2).sum(1)


def _waves(inputs: Tensor) -> Tensor:
    return (3 * inputs).sin().sum(1) - inputs.square().sum(1)


def _example(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def used(perturbation: Perturbation) -> Tensor:
    """The example's rows as the perturbation leaves them."""
    changed: Tensor = perturbation(_squares, _example(ROWS, 4))
    return changed


def _call(perturbation: Perturbation, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    changed: Tensor = copy.deepcopy(perturbation)(_waves, x)
    return changed


def same_shape_and_dtype(perturbation: Perturbation) -> None:
    """The perturbed input has the input's shape and dtype, and is finite."""
    for shape in ((ROWS, 4), (ROWS, 2, 3, 3)):
        for dtype in (torch.float32, torch.float64):
            x = _example(*shape, dtype=dtype)
            torch.manual_seed(0)
            changed = copy.deepcopy(perturbation)(_squares, x)
            assert changed.shape == x.shape, f"an input of shape {shape} comes back as {tuple(changed.shape)}"
            assert changed.dtype == x.dtype, f"an input in {dtype} comes back in {changed.dtype}"
            assert bool(changed.isfinite().all()), "the perturbed input is not finite"


def no_graph(perturbation: Perturbation) -> None:
    """The perturbed input carries no graph to what made it, and the input is left as it was."""
    x = _example(ROWS, 4)
    before = x.clone()
    assert not _call(perturbation, x).requires_grad, "the perturbed input requires grad"
    assert torch.equal(x, before), "the input was changed in place"


def leaves_model_alone(perturbation: Perturbation) -> None:
    """The model's mode, gradients and parameters are as they were."""
    model = Noisy().eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    before = copy.deepcopy(model.state_dict())
    copy.deepcopy(perturbation)(model, _example(ROWS, 4, dtype=torch.float32))
    assert not model.training, "the model was put into training mode"
    assert_close(model.first.weight.grad, torch.ones_like(model.first.weight))
    assert all(parameter.grad is None for parameter in model.rest.parameters()), "a weight of the model got a gradient"
    for name, tensor in model.state_dict().items():
        assert_close(tensor, before[name], atol=0, rtol=0)


def asks_the_risk(perturbation: Perturbation) -> bool:
    """Whether the perturbation looks at the risk at all."""
    asked = []

    def risk(inputs: Tensor) -> Tensor:
        asked.append(1)
        return _waves(inputs)

    torch.manual_seed(0)
    copy.deepcopy(perturbation)(risk, _example(ROWS, 4))
    return bool(asked)


def never_helps_the_model(perturbation: Perturbation) -> None:
    """A perturbation that looks at the risk never lowers it, row by row."""
    x = 2 * _example(ROWS, 4) - 1
    assert bool((_waves(_call(perturbation, x)) >= _waves(x)).all()), "a row's risk is lower than at its clean input"


def rows_stand_alone(perturbation: Perturbation) -> None:
    """A row is changed in the same way whatever else is in the batch."""
    x = 2 * _example(ROWS, 4) - 1
    alone = torch.cat([_call(perturbation, row[None]) for row in x])
    assert_close(alone, _call(perturbation, x), msg="a row is changed otherwise when it is alone: {}".format)


def order_of_rows_is_nothing(perturbation: Perturbation) -> None:
    """Rows in another order are changed in the same way, to the last bit: no sign or tie hangs on rounding."""
    x = 2 * _example(ROWS, 4) - 1
    assert_close(_call(perturbation, x.flip(0)).flip(0), _call(perturbation, x), atol=0, rtol=0)


def says_where_it_begins(perturbation: Perturbation) -> None:
    """A perturbation whose first gradient is taken at the clean input says ``begins_at_input``, and no other does."""
    x, firsts = 2 * _example(ROWS, 4) - 1, list[bool]()

    def risk(inputs: Tensor) -> Tensor:
        if inputs.requires_grad:
            firsts.append(bool(torch.equal(inputs.detach(), x)))
        return _waves(inputs)

    torch.manual_seed(0)
    copy.deepcopy(perturbation)(risk, x)
    begins = bool(firsts) and firsts[0]
    assert perturbation.begins_at_input == begins, f"begins_at_input is {perturbation.begins_at_input}, not {begins}"


def works_in_inference_mode(perturbation: Perturbation) -> None:
    """Inputs, targets and weights made under ``torch.inference_mode()`` are changed as ordinary ones are."""
    x = 2 * _example(ROWS, 4) - 1
    weight = torch.linspace(1, 2, 4, dtype=torch.float64)

    def changed(rows: Tensor, factor: Tensor) -> Tensor:
        torch.manual_seed(0)
        found: Tensor = copy.deepcopy(perturbation)(lambda inputs: _waves(inputs * factor), rows)
        return found

    wanted = changed(x, weight)
    with torch.inference_mode():
        inside = changed(x, weight)
        rows, factor = x.clone(), weight.clone()
        made_inside = changed(rows, factor)
    for found in (inside, made_inside, changed(rows, factor)):
        assert_close(found.clone(), wanted, msg="inference mode changes the answer: {}".format)
    assert not changed(rows, factor).is_inference(), "the perturbed input cannot be trained on"


def bad_slopes_stay_in_their_row(perturbation: Perturbation) -> None:
    """A row whose slope is NaN or infinite stays finite, and the other rows are changed as they would be without it."""
    x = 2 * _example(ROWS, 4) - 1
    wanted = _call(perturbation, x)
    for bad in (torch.nan, torch.inf):
        factor = torch.ones(ROWS, 4, dtype=torch.float64)
        factor[0, 0] = bad

        def risk(inputs: Tensor, factor: Tensor = factor) -> Tensor:
            return _Sloped.apply(_waves(inputs), inputs, factor)

        torch.manual_seed(0)
        found = copy.deepcopy(perturbation)(risk, x)
        assert bool(found.isfinite().all()), f"a slope of {bad} gives an input that is not finite"
        assert_close(found[1:], wanted[1:], msg=f"a row's slope of {bad} changes another row: {{}}".format)


class _Sloped(torch.autograd.Function):
    """The values, whose gradient in the inputs is moreover multiplied by a factor."""

    @staticmethod
    def forward(values: Tensor, inputs: Tensor, factor: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grads[0], torch.where(factor == 1, 0.0, factor), None


def vmaps(perturbation: Perturbation) -> None:
    """Stacked inputs under ``vmap`` are changed as each would be alone."""
    x = 2 * _example(ROWS, 4) - 1
    stacked = torch.func.vmap(lambda rows: perturbation(_waves, rows))(torch.stack([x, 2 * x]))
    assert_close(stacked, torch.stack([_call(perturbation, x), _call(perturbation, 2 * x)]))


def price_of_nothing_is_nothing(perturbation: Consistency) -> None:
    """The distance between two outputs that are the same is 0, and is never below 0."""
    generator = torch.Generator().manual_seed(0)
    clean, other = torch.randn(2, ROWS, CLASSES, dtype=torch.float64, generator=generator)
    target = torch.arange(ROWS) % CLASSES
    distance = perturbation.per_sample(other, clean, target)
    assert distance.shape == (ROWS,), f"{ROWS} rows have distances of shape {tuple(distance.shape)}"
    assert bool((distance >= 0).all()), f"the least distance is {float(distance.min())}"
    nothing = perturbation.per_sample(clean, clean, target)
    assert_close(nothing, torch.zeros(ROWS, dtype=torch.float64), msg="no change has a price: {}".format)


def empty_batch(perturbation: Perturbation) -> None:
    """No rows stay no rows."""
    assert _call(perturbation, _example(0, 4)).shape == (0, 4)


def clear_errors(perturbation: Perturbation) -> None:
    """An input that is no floats is named, and so is one that is no tensor."""
    for wrong in (torch.arange(4)[None], "rows"):
        expect_error("x", partial(copy.deepcopy(perturbation), _squares, wrong))
