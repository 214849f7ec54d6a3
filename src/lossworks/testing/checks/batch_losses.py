"""The checks of a loss that couples its batch, beyond those that it shares with every loss."""

import copy
import math
from functools import partial

import torch
from torch import Tensor
from torch.testing import assert_close

from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Weighting
from lossworks.testing.inputs import ROWS, example, expect_error

__all__ = [
    "clear_errors",
    "one_number",
    "order_of_rows_does_not_count",
    "refuses_a_weighting",
    "sample_weights_are_relative",
    "weight_zero_is_absent",
]


def one_number(loss: BatchLoss) -> None:
    """The batch's loss is one finite number in the outputs' dtype."""
    for dtype in (torch.float32, torch.float64):
        value = _call(loss, *_inputs(loss, dtype))
        assert value.shape == (), f"a batch must have one number, it has shape {tuple(value.shape)}"
        assert value.dtype == dtype, f"{dtype} outputs must have a loss in {dtype}, it is {value.dtype}"
        assert bool(value.isfinite()), f"the loss is {value.item()}"


def order_of_rows_does_not_count(loss: BatchLoss) -> None:
    """Shuffled rows have the same loss, with their sample weights."""
    output, target = _inputs(loss)
    weight = torch.linspace(0.5, 2, ROWS, dtype=output.dtype)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    wanted = _call(loss, output, target, weight)
    assert_close(_call(loss, output[order], target[order], weight[order]), wanted)


def sample_weights_are_relative(loss: BatchLoss) -> None:
    """Weights that are all the same are no weights, and weights of twice the size are the same weights."""
    output, target = _inputs(loss)
    ones, weight = torch.ones(ROWS, dtype=output.dtype), torch.linspace(0.5, 2, ROWS, dtype=output.dtype)
    assert_close(_call(loss, output, target, ones), _call(loss, output, target))
    assert_close(_call(loss, output, target, 2 * weight), _call(loss, output, target, weight))


def weight_zero_is_absent(loss: BatchLoss) -> None:
    """A row of sample weight 0 is as if it were absent, whatever its output is: it is compared with no other row."""
    output, target = _inputs(loss)
    keep = torch.arange(ROWS) % 3 != 1
    weight = torch.where(keep, torch.linspace(0.5, 2, ROWS, dtype=output.dtype), 0)
    own = output[keep].requires_grad_()
    wanted = _call(loss, own, target[keep], weight[keep])
    (right,) = torch.autograd.grad(wanted, own)
    for bad in (None, math.nan, math.inf):
        here = output if bad is None else torch.where(keep.reshape(-1, *(1 for _ in output.shape[1:])), output, bad)
        leaf = here.clone().requires_grad_()
        value = _call(loss, leaf, target, weight)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert_close(value, wanted, msg=partial("rows of weight 0 that hold {bad}: {}".format, bad=bad))
        assert_close(gradient[keep], right)
        assert bool((gradient[~keep] == 0).all()), "a row of weight 0 has a gradient"


class _EqualWeights(Weighting):
    """One for each row."""

    def forward(self, losses: Tensor, **columns: Tensor | None) -> Tensor:
        return torch.ones_like(losses)


def refuses_a_weighting(loss: BatchLoss) -> None:
    """An objective refuses to weigh rows that the loss does not have, and says which loss it is."""
    expect_error(type(loss).__name__, partial(Objective, loss, _EqualWeights()))


def clear_errors(loss: BatchLoss) -> None:
    """Bad arguments raise ``ValueError`` or ``TypeError`` that name the argument."""
    output, target = _inputs(loss)
    first = torch.arange(output.numel()).reshape(output.shape) == 0
    for name, wrong in (
        ("output", {"output": output.long()}),
        ("output", {"output": output.masked_fill(first, math.nan)}),
        ("target", {"target": target[:-1]}),
        ("sample_weight", {"sample_weight": torch.ones(ROWS + 1)}),
        ("sample_weight", {"sample_weight": -torch.ones(ROWS)}),
        ("sample_weight", {"sample_weight": torch.ones(ROWS, dtype=torch.int64)}),
    ):
        given = {"output": output, "target": target, **wrong}
        expect_error(name, partial(_by_name, loss, **given))


def _by_name(loss: BatchLoss, output: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    value: Tensor = loss(output, target, sample_weight=sample_weight)
    return value


def _inputs(loss: BatchLoss, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    output, target, _ = example(loss, dtype=dtype)
    return output, target


def _call(loss: BatchLoss, output: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    torch.manual_seed(0)
    return _by_name(copy.deepcopy(loss), output, target, sample_weight)
