"""The checks of the weights on the rows."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.roles import Weighting, asked_once
from lossworks.testing.inputs import CLASSES, ROWS, expect_error, from_data

__all__ = [
    "clear_errors",
    "compiles",
    "empty_batch",
    "equal_rows_get_equal_weights",
    "finite_at_extremes",
    "gradient_stays_out",
    "holds_many_half_rows",
    "mean_one",
    "non_negative",
    "over_the_data_set",
    "permutation_equivariant",
    "reads_no_losses",
    "rows_of",
    "used",
    "vmaps",
    "weight_zero_is_absent",
]


def rows_of(weighting: Weighting, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of one epoch over the data set that the weighting was built for, and the columns that it may ask for."""
    counts = from_data()["class_counts"].long()
    rows = int(counts.sum()) if weighting.needs_target else ROWS
    losses = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    return losses, {
        "index": torch.arange(rows),
        "group": torch.arange(rows) % 3,
        "target": torch.repeat_interleave(torch.arange(CLASSES), counts)[:rows],
    }


def used(weighting: Weighting) -> Tensor:
    """The weights of the example's rows."""
    losses, columns = rows_of(weighting)
    return _call(weighting, losses, columns)


def _call(weighting: Weighting, losses: Tensor, columns: dict[str, Any]) -> Tensor:
    weights: Tensor = weighting(losses, **columns)
    return weights


def _fresh(weighting: Weighting, losses: Tensor, columns: dict[str, Any]) -> Tensor:
    """The weights that the weighting gives from the state that it is in, which it keeps."""
    return _call(copy.deepcopy(weighting), losses, columns)


def non_negative(weighting: Weighting) -> None:
    """One weight a row, finite and never below 0."""
    losses, columns = rows_of(weighting)
    weights = _fresh(weighting, losses, columns)
    assert weights.shape == losses.shape, f"{tuple(losses.shape)} losses have weights of shape {tuple(weights.shape)}"
    assert bool(weights.isfinite().all()), f"the weights are {weights.tolist()}"
    assert bool((weights >= 0).all()), f"the least weight is {float(weights.min())}"


def mean_one(weighting: Weighting) -> None:
    """The weights have mean 1, over the batch or over the data set."""
    losses, columns = rows_of(weighting)
    weights = _fresh(weighting, losses, columns)
    assert_close(weights.mean(), torch.ones((), dtype=weights.dtype), msg="the mean weight is not 1: {}".format)


def permutation_equivariant(weighting: Weighting) -> None:
    """Shuffling the rows shuffles their weights."""
    losses, columns = rows_of(weighting)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in columns.items()}
    assert_close(_fresh(weighting, losses[order], shuffled), _fresh(weighting, losses, columns)[order])


def equal_rows_get_equal_weights(weighting: Weighting) -> None:
    """Rows of one loss, class and group get one weight, whatever their place in the batch."""
    losses, columns = rows_of(weighting)
    tied = (4 * losses).round() / 4
    same = {**columns, "group": columns["group"] * 0, "target": columns["target"] * 0}
    for values in (tied, torch.ones_like(losses)):
        weights = _fresh(weighting, values, same)
        for level in values.unique():
            own = weights[values == level]
            assert_close(own, own[:1].expand(len(own)), msg=partial(_unlike, float(level), own))


def _unlike(level: float, weights: Tensor, _: str) -> str:
    return f"rows of the one loss {level:g} have weights from {float(weights.min()):g} to {float(weights.max()):g}"


def reads_no_losses(weighting: Weighting) -> None:
    """Weights that are said not to depend on the losses are the same for others."""
    losses, columns = rows_of(weighting)
    wanted = _fresh(weighting, losses, columns)
    assert_close(_fresh(weighting, torch.ones_like(losses), columns), wanted)


def over_the_data_set(weighting: Weighting) -> None:
    """Weights of mean 1 over the data set are those of the rows, whatever else is in the batch."""
    losses, columns = rows_of(weighting)
    some = {name: value[:5] for name, value in columns.items()}
    assert_close(_fresh(weighting, losses[:5], some), _fresh(weighting, losses, columns)[:5])


def finite_at_extremes(weighting: Weighting) -> None:
    """Weights are finite and never below 0 where losses are 0, huge, all the same or half precision."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        losses, columns = rows_of(weighting, dtype)
        first = torch.arange(len(losses)) == 0
        cases = (losses * 0, losses * 0 + 1e4, torch.where(first, 1e4, 0 * losses), torch.where(first, 0, 1e4 + losses))
        for values in cases:
            weights = _fresh(weighting, values.to(dtype), columns)
            assert bool(weights.isfinite().all()), f"weights of losses up to {float(values.max())} in {dtype}"
            assert bool((weights >= 0).all()), f"a weight of {float(weights.min())} in {dtype}"


def holds_many_half_rows(weighting: Weighting) -> None:
    """More rows than half precision counts to have the weights of the same losses in float32."""
    losses, columns = rows_of(weighting, torch.float16)
    times = 2**17 // len(losses) if asked_once(weighting) else 1
    losses, columns = losses.repeat(times), {name: column.repeat(times) for name, column in columns.items()}
    losses[0] = 3e4
    for dtype in (torch.float16, torch.bfloat16):
        cast = losses.to(dtype)
        wanted = _fresh(weighting, cast.float(), columns)
        found = _fresh(weighting, cast, columns)
        digits = torch.finfo(found.dtype)
        near = partial(assert_close, rtol=8 * digits.eps, atol=digits.tiny)
        near(found.to(wanted.dtype), wanted, msg=partial(_half, dtype))


def _half(dtype: torch.dtype, difference: str) -> str:
    return f"{dtype} losses have other weights than the same numbers in float32: {difference}"


def gradient_stays_out(weighting: Weighting) -> None:
    """An objective's gradient goes through the losses, and not through the weights that were found from them."""
    losses, columns = rows_of(weighting)
    target, index, group = columns["target"], columns["index"], columns["group"]
    logits = torch.randn(len(losses), CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    value = Objective(CrossEntropyLoss(), copy.deepcopy(weighting)).risk(logits, target, index=index, group=group)
    (got,) = torch.autograd.grad(value, logits)
    each = CrossEntropyLoss(reduction="none")(logits, target)
    weights = _fresh(weighting, each.detach(), columns)
    (wanted,) = torch.autograd.grad((weights.detach() * each).mean(), logits)
    assert_close(got, wanted)


def weight_zero_is_absent(weighting: Weighting) -> None:
    """A row of sample weight 0 is not counted, has no place among the others and is not remembered."""
    losses, columns = rows_of(weighting)
    keep = torch.arange(len(losses)) % 3 != 1
    sample_weight = torch.where(keep, torch.linspace(0.5, 2, len(losses), dtype=torch.float64), 0)
    logits = torch.randn(len(losses), CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for bad in (50.0, torch.nan, torch.inf):
        values, gradients, states = [], [], []
        for rows, holes in ((torch.ones_like(keep), True), (keep, False)):
            objective = Objective(CrossEntropyLoss(), copy.deepcopy(weighting))
            here = torch.where(keep[:, None], logits, bad) if holes else logits
            leaf = here[rows].clone().requires_grad_()
            target, index, group = (columns[name][rows] for name in ("target", "index", "group"))
            value = objective.risk(leaf, target, index=index, group=group, sample_weight=sample_weight[rows])
            values.append(value.detach())
            gradients.append(torch.autograd.grad(value, leaf)[0])
            states.append(list(objective.weights.buffers()) if objective.weights is not None else [])
        assert_close(values[0], values[1], msg=partial("rows of weight 0 that hold {bad}: {}".format, bad=bad))
        assert_close(gradients[0][keep], gradients[1])
        assert bool((gradients[0][~keep] == 0).all()), "a row of weight 0 has a gradient"
        for one, other in zip(*states, strict=True):
            assert_close(one, other, msg="what is remembered: {}".format)


def vmaps(weighting: Weighting) -> None:
    """Stacked losses under ``vmap`` get the weights that each would get alone."""
    losses, columns = rows_of(weighting)
    stacked = torch.stack([losses, losses.flip(0), losses**2])
    held = {name: torch.stack([tensor] * 3) for name, tensor in weighting.state_dict().items()}
    together = torch.func.vmap(lambda state, row: functional_call(weighting, state, (row,), columns))(held, stacked)
    assert_close(together, torch.stack([_fresh(weighting, row, columns) for row in stacked]))


def compiles(weighting: Weighting) -> None:
    """``torch.compile`` takes the weighting in one graph, with the same weights."""
    losses, columns = rows_of(weighting)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(weighting), backend="eager", fullgraph=True)
    assert_close(compiled(losses, **columns), _fresh(weighting, losses, columns))


def empty_batch(weighting: Weighting) -> None:
    """No rows have no weights."""
    losses, columns = rows_of(weighting)
    none = {name: value[:0] for name, value in columns.items()}
    assert _fresh(weighting, losses[:0], none).shape == (0,)


def clear_errors(weighting: Weighting) -> None:
    """Losses that are no floats, and columns that are missing or of another length, are named."""
    losses, columns = rows_of(weighting)
    if weighting.reads_losses:
        expect_error("losses", partial(_fresh, weighting, losses.long(), columns))
    asked = {"target": weighting.needs_target, "group": weighting.needs_group, "index": weighting.needs_index}
    for name in (name for name, needed in asked.items() if needed):
        for wrong in (None, columns[name][:-1], columns[name].double()):
            expect_error(name, partial(_fresh, weighting, losses, {**columns, name: wrong}))
