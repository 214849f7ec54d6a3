"""The checks of a loss, with one value a row or for the whole batch."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from lossworks.fused import linear_loss
from lossworks.roles import BatchLoss, Loss
from lossworks.testing.checks.every import float_hyperparameters, required
from lossworks.testing.inputs import CLASSES, ROWS, example, expect_error

__all__ = [
    "autocast_close",
    "chunks_exact",
    "class_permutation_equivariant",
    "clear_errors",
    "compiles",
    "empty_batch",
    "gradcheck",
    "hyperparameters_may_be_tensors",
    "ignored_rows_do_not_count",
    "ignored_rows_may_be_anything",
    "permutation_equivariant",
    "reduction_consistent",
    "soft_targets_agree",
    "spatial_rows",
    "split_exact",
    "used",
    "vmaps",
    "weight_zero_is_absent",
]


AnyLoss = Loss | BatchLoss
BAD = (math.nan, math.inf, -math.inf)
"""What a row may hold that does not count."""
MANY = 60
"""Outputs beyond which the gradient is compared along random directions, and not number by number."""


def used(loss: AnyLoss) -> tuple[Tensor, Tensor]:
    """The value on the example and its gradient."""
    output, target, extra = example(loss)
    value = loss(output.requires_grad_(), target, **extra)
    return value, torch.autograd.grad(value.sum(), output)[0]


def _call(loss: AnyLoss, output: Tensor, target: Tensor, reduction: str = "none", /, **extra: Any) -> Tensor:
    """The loss of these rows, always with the same draws and from the same state."""
    loss = copy.deepcopy(loss)
    if isinstance(loss, Loss):
        loss.reduction = reduction
    torch.manual_seed(0)
    return loss(output, target, **extra)


def _gradient(loss: AnyLoss, output: Tensor, target: Tensor, reduction: str = "mean", /, **extra: Any) -> Tensor:
    output = output.detach().requires_grad_()
    return torch.autograd.grad(_call(loss, output, target, reduction, **extra), output)[0]


def reduction_consistent(loss: Loss) -> None:
    """``sum`` and ``mean`` are those of ``none``, with sample weights as torch counts class weights."""
    output, target, extra = example(loss)
    each = _call(loss, output, target, **extra)
    assert each.shape == target.shape, f"reduction='none' must give {tuple(target.shape)}, gave {tuple(each.shape)}"
    assert_close(_call(loss, output, target, "sum", **extra), each.sum())
    assert_close(_call(loss, output, target, "mean", **extra), each.mean())
    weight = torch.arange(1, ROWS + 1, dtype=each.dtype)
    weighted = {"sample_weight": weight, **extra}
    assert_close(_call(loss, output, target, **weighted), each * weight)
    assert_close(_call(loss, output, target, "mean", **weighted), (each * weight).sum() / weight.sum())
    assert_close(_call(loss, output, target, "mean", total=2.0, **weighted), (each * weight).sum() / 2)


def gradcheck(loss: AnyLoss) -> None:
    """The gradient in the output and in the sample weights is the derivative, in float64; state held fixed."""
    output, target, extra = example(loss, 6)
    weight = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    frozen = copy.deepcopy(loss).eval()
    if isinstance(frozen, Loss):
        frozen.reduction = "mean"

    def value(output: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(0)
        result: Tensor = frozen(output, target, sample_weight=weight, **extra)
        return result

    leaves = (output.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(value, leaves, atol=1e-5, fast_mode=output.numel() > MANY)


def permutation_equivariant(loss: Loss) -> None:
    """Shuffling the rows shuffles their losses."""
    output, target, extra = example(loss)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in extra.items()}
    assert_close(_call(loss, output[order], target[order], **shuffled), _call(loss, output, target, **extra)[order])


def class_permutation_equivariant(loss: Loss) -> None:
    """Renaming the classes, and whatever the loss holds for each of them, changes nothing."""
    output, target, extra = example(loss)
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    renamed = copy.deepcopy(loss)
    for name, buffer in renamed.named_buffers():
        if buffer.shape == (CLASSES,):
            renamed.get_buffer(name).copy_(buffer[order].clone())
    assert_close(
        _call(renamed, output[:, order], order.argsort()[target], **extra), _call(loss, output, target, **extra)
    )


def split_exact(loss: Loss) -> None:
    """The mean over a batch and its gradient are the same when the batch comes in micro-batches with ``total``."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        output, target, extra = example(loss, dtype=dtype)
        weight = torch.linspace(0.5, 2, ROWS, dtype=dtype)
        whole, parts = copy.deepcopy(loss), copy.deepcopy(loss)
        leaf = output.clone().requires_grad_()
        value = whole(leaf, target, sample_weight=weight, **extra)
        (gradient,) = torch.autograd.grad(value, leaf)
        total = weight.sum()
        summed, pieces = torch.zeros((), dtype=dtype), []
        for rows in torch.arange(ROWS).split(5):
            piece = output[rows].clone().requires_grad_()
            some = {name: given[rows] for name, given in extra.items()}
            part = parts(piece, target[rows], sample_weight=weight[rows], total=total, **some)
            pieces.append(torch.autograd.grad(part, piece)[0])
            summed = summed + part.detach()
        assert_close(summed, value.detach(), atol=tolerance, rtol=tolerance)
        assert_close(torch.cat(pieces), gradient, atol=tolerance, rtol=tolerance)
        for (name, one), other in zip(whole.named_buffers(), parts.buffers(), strict=True):
            assert_close(other, one, msg=partial("buffer {name} after a split: {}".format, name=name))


def chunks_exact(loss: Loss) -> None:
    """On a linear layer taken in uneven chunks of rows, value, gradients and state are those of the plain form."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        output, target, extra = example(loss, dtype=dtype)
        if output.ndim == 1:
            output, target = output[:, None], target[:, None]
        if loss.kind.has_classes:
            target = torch.where(torch.arange(ROWS) % 5 == 3, loss.ignore_index, target)
        generator = torch.Generator().manual_seed(1)
        shapes = ((ROWS, 4), (output.shape[1], 4), output.shape[1:])
        hidden, weight, bias = (
            torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes
        )
        shape = _call(loss, output, target, **extra).shape
        counts = torch.linspace(0, 2, shape.numel(), dtype=dtype).reshape(shape).requires_grad_()
        leaves = (hidden, weight, bias, counts)
        for reduction in ("none", "sum", "mean"):
            plain, chunked = copy.deepcopy(loss), copy.deepcopy(loss)
            plain.reduction = reduction
            wanted = plain(torch.nn.functional.linear(hidden, weight, bias), target, sample_weight=counts, **extra)
            got = linear_loss(
                hidden,
                weight,
                target,
                chunked,
                bias=bias,
                sample_weight=counts,
                index=extra.get("index"),
                ignore_index=loss.ignore_index,
                reduction=reduction,
                chunk=5,
            )
            close = partial(assert_close, atol=tolerance, rtol=tolerance)
            close(got, wanted, msg=partial("reduction={how!r}: {}".format, how=reduction))
            upstream = torch.linspace(-1, 2, wanted.numel(), dtype=dtype).reshape(wanted.shape)
            found, right = (torch.autograd.grad(value, leaves, upstream) for value in (got, wanted))
            for name, one, other in zip(("hidden", "weight", "bias", "sample_weight"), found, right, strict=True):
                close(one, other, msg=partial("gradient in {name}: {}".format, name=f"{name}, {reduction!r}"))
            for (name, one), other in zip(chunked.named_buffers(), plain.buffers(), strict=True):
                close(one, other, msg=partial("buffer {name} after chunks: {}".format, name=name))


def vmaps(loss: AnyLoss) -> None:
    """Stacked outputs, hyperparameters and state under ``torch.func.vmap`` equal the loop, value and gradient."""
    batches = [example(loss, seed=seed) for seed in range(3)]
    output = torch.stack([batch[0] for batch in batches])
    target = torch.stack([batch[1] for batch in batches])
    extra = batches[0][2]
    values = float_hyperparameters(loss)
    models = [_with_tensors(loss, {name: value * (1 + 0.01 * r) for name, value in values.items()}) for r in range(3)]
    for model in models:
        if isinstance(model, Loss):
            model.reduction = "mean"
    alone = [
        torch.func.grad_and_value(partial(_mean_alone, model, target[r], extra))(output[r])
        for r, model in enumerate(models)
    ]
    held = {
        name: torch.stack(
            [dict([*model.named_buffers(), *model.named_parameters()])[name] for model in models]
        ).detach()
        for name, _ in [*models[0].named_buffers(), *models[0].named_parameters()]
    }

    def value(state: dict[str, Tensor], out: Tensor, tgt: Tensor) -> Tensor:
        result = functional_call(models[0], state, (out, tgt), extra)
        assert isinstance(result, Tensor)
        return result

    together = torch.func.vmap(torch.func.grad_and_value(value, argnums=1), randomness="different")
    gradient, means = together(held, output, target)
    assert means.shape == (3,)
    assert gradient.shape == output.shape
    if not loss.stochastic:
        assert_close(means, torch.stack([mean for _, mean in alone]).detach())
        assert_close(gradient, torch.stack([grad for grad, _ in alone]))


def _mean_alone(loss: AnyLoss, target: Tensor, extra: dict[str, Tensor], output: Tensor) -> Tensor:
    value: Tensor = copy.deepcopy(loss)(output, target, **extra)
    return value


def _with_tensors(loss: AnyLoss, values: dict[str, float]) -> AnyLoss:
    """The same loss with these hyperparameters as 0-d float64 tensors."""
    changed = copy.deepcopy(loss)
    for name, value in values.items():
        changed.__dict__.pop(name)
        setattr(changed, name, torch.tensor(value, dtype=torch.float64))
    return changed


def hyperparameters_may_be_tensors(loss: AnyLoss) -> None:
    """A float hyperparameter given as a 0-d tensor gives the same value, and a finite gradient where one flows."""
    output, target, extra = example(loss)
    wanted = _call(loss, output, target, **extra)
    for name, value in float_hyperparameters(loss).items():
        tensor = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        changed = copy.deepcopy(loss)
        changed.__dict__.pop(name)
        setattr(changed, name, tensor)
        if isinstance(changed, Loss):
            changed.reduction = "none"
        torch.manual_seed(0)
        each = changed(output, target, **extra)
        assert_close(each, wanted, msg=partial("{name} as a tensor: {}".format, name=name))
        if each.requires_grad:
            (gradient,) = torch.autograd.grad(each.sum(), tensor)
            assert bool(gradient.isfinite()), f"the gradient in {name} is {gradient.item()}"


def compiles(loss: AnyLoss) -> None:
    """``torch.compile`` takes value and gradient in one graph, with the same numbers."""
    output, target, extra = example(loss)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(loss), backend="eager", fullgraph=True)
    leaf = output.clone().requires_grad_()
    torch.manual_seed(0)
    value = compiled(leaf, target, **extra)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert bool(gradient.isfinite().all())
    if not loss.stochastic:
        reduction = loss.reduction if isinstance(loss, Loss) else "mean"
        assert_close(value, _call(loss, output, target, reduction, **extra))
        assert_close(gradient, _gradient(loss, output, target, reduction, **extra))


def autocast_close(loss: AnyLoss) -> None:
    """Under autocast the loss of half-precision outputs is computed in float32."""
    output, target, extra = example(loss, dtype=torch.float32)
    target = target.float() if target.is_floating_point() else target
    half = output.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = _call(loss, half, target.bfloat16() if target.is_floating_point() else target, **extra)
    assert inside.dtype == torch.float32, f"expected float32 under autocast, got {inside.dtype}"
    rounded = target.bfloat16().float() if target.is_floating_point() else target
    assert_close(inside, _call(loss, half.float(), rounded, **extra), atol=1e-4, rtol=1e-3)


def ignored_rows_do_not_count(loss: Loss) -> None:
    """A row whose target is ``ignore_index`` has no loss and no gradient, and the mean leaves it out."""
    output, target, extra = example(loss)
    keep = torch.arange(ROWS) % 3 != 0
    masked = torch.where(keep, target, loss.ignore_index)
    some = {name: value[keep] for name, value in extra.items()}
    assert_close(_call(loss, output, masked, "mean", **extra), _call(loss, output[keep], target[keep], "mean", **some))
    assert bool((_gradient(loss, output, masked, **extra)[~keep] == 0).all()), "an ignored row has a gradient"
    nothing = _call(loss, output, torch.full_like(target, loss.ignore_index), "mean", **extra)
    assert nothing == 0, f"a wholly ignored batch must have mean 0, has {nothing.item()}"


def ignored_rows_may_be_anything(loss: Loss) -> None:
    """A row whose target is ``ignore_index`` may hold NaN or inf: all is as without it, its gradient is exactly 0."""
    output, target, extra = example(loss)
    keep = torch.arange(ROWS) % 3 != 0
    masked = torch.where(keep, target, loss.ignore_index)
    for bad in BAD:
        _same_without(loss, torch.where(_over(keep, output), output, bad), masked, extra, keep, None)


def weight_zero_is_absent(loss: Loss) -> None:
    """A row of sample weight 0 is as if it were absent, whatever its output is: in value, gradient and memory."""
    output, target, extra = example(loss)
    keep = torch.arange(ROWS) % 3 != 1
    weight = torch.where(keep, torch.linspace(0.5, 2, ROWS, dtype=output.dtype), 0)
    for bad in BAD:
        _same_without(loss, torch.where(_over(keep, output), output, bad), target, extra, keep, weight)


def _over(rows: Tensor, values: Tensor) -> Tensor:
    return rows.reshape(-1, *(1 for _ in values.shape[1:]))


def _same_without(
    loss: Loss, output: Tensor, target: Tensor, extra: dict[str, Tensor], keep: Tensor, weight: Tensor | None
) -> None:
    """Assert that the loss is the one without the rows that are not kept, plain and, where it can be, fused."""
    some = {name: value[keep] for name, value in extra.items()}
    lighter = None if weight is None else weight[keep]
    for reduction in ("mean", "sum", "none"):
        found, right = copy.deepcopy(loss), copy.deepcopy(loss)
        found.reduction = right.reduction = reduction
        leaf, own = output.clone().requires_grad_(), output[keep].clone().requires_grad_()
        torch.manual_seed(0)
        value = found(leaf, target, sample_weight=weight, **extra)
        torch.manual_seed(0)
        wanted = right(own, target[keep], sample_weight=lighter, **some)
        compared = value[keep] if reduction == "none" else value
        assert_close(compared, wanted, msg=partial("reduction={how!r}: {}".format, how=reduction))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert bool((gradient[~keep] == 0).all()), f"a row that does not count has a gradient: {gradient[~keep]}"
        assert_close(gradient[keep], torch.autograd.grad(wanted.sum(), own)[0])
        for (name, one), other in zip(found.named_buffers(), right.buffers(), strict=True):
            assert_close(one, other, msg=partial("buffer {name}: {}".format, name=name))
    if loss.rowwise and not loss.stochastic and not loss.couples_batch:
        _same_without_when_fused(loss, output, target, extra, keep, weight)


def _same_without_when_fused(
    loss: Loss, output: Tensor, target: Tensor, extra: dict[str, Tensor], keep: Tensor, weight: Tensor | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    columns = 1 if output.ndim == 1 else output.shape[1]
    if output.ndim == 1:
        target = target[:, None]
        weight = None if weight is None else weight.reshape(loss.row_shape(target))
    hidden = torch.randn(ROWS, 4, dtype=output.dtype, generator=generator)
    layer = [torch.randn(shape, dtype=output.dtype, generator=generator) for shape in ((columns, 4), (columns,))]
    for reduction in ("mean", "none"):
        results = []
        for rows, holes in ((torch.ones_like(keep), True), (keep, False)):
            here = torch.where(keep[:, None], hidden, math.nan)[rows] if holes else hidden[rows]
            leaves = [tensor.clone().requires_grad_() for tensor in (here, *layer)]
            value = linear_loss(
                leaves[0],
                leaves[1],
                target[rows],
                copy.deepcopy(loss),
                bias=leaves[2],
                sample_weight=None if weight is None else weight[rows],
                index=extra["index"][rows] if extra else None,
                ignore_index=loss.ignore_index,
                reduction=reduction,
                chunk=5,
            )
            results.append((value.detach().sum(), *torch.autograd.grad(value.sum(), leaves)))
        (value, of_hidden, *of_layer), (wanted, of_kept, *right) = results
        assert_close(value, wanted, msg=partial("linear_loss, {how!r}: {}".format, how=reduction))
        assert bool((of_hidden[~keep] == 0).all()), "linear_loss: a row that does not count has a gradient"
        assert_close(of_hidden[keep], of_kept, msg="linear_loss, gradient in hidden: {}".format)
        for name, one, other in zip(("weight", "bias"), of_layer, right, strict=True):
            assert_close(one, other, msg=partial("linear_loss, gradient in {name}: {}".format, name=name))


def spatial_rows(loss: Loss) -> None:
    """Outputs ``(n, C, d1, d2)`` with targets ``(n, d1, d2)`` are so many rows."""
    output, target, extra = example(loss, 12)
    shaped = output.reshape(2, 3, 2, CLASSES).movedim(-1, 1)
    inside = {name: value.reshape(2, 3, 2) for name, value in extra.items()}
    each = _call(loss, shaped, target.reshape(2, 3, 2), **inside)
    assert_close(each, _call(loss, output, target, **extra).reshape(2, 3, 2))


def soft_targets_agree(loss: Loss) -> None:
    """A class-probability target that is certain equals the class."""
    output, target, extra = example(loss)
    certain = torch.eye(CLASSES, dtype=output.dtype)[target]
    assert_close(_call(loss, output, certain, **extra), _call(loss, output, target, **extra))
    assert_close(_gradient(loss, output, certain, **extra), _gradient(loss, output, target, **extra))


def empty_batch(loss: AnyLoss) -> None:
    """No rows: the mean and the sum are 0, with a gradient of no rows."""
    output, target, extra = example(loss, 0)
    leaf = output.requires_grad_()
    for reduction in ("mean", "sum"):
        value = _call(loss, leaf, target, reduction, **extra)
        assert value == 0, f"{reduction} of an empty batch must be 0, is {value.item()}"
    assert torch.autograd.grad(value, leaf)[0].shape == output.shape


def clear_errors(loss: Loss) -> None:
    """Bad arguments raise ``ValueError`` or ``TypeError`` that name the argument."""
    output, target, extra = example(loss)
    for name, wrong in _wrong_calls(loss, output, target):
        expect_error(name, partial(loss, **{"output": output, "target": target, **extra, **wrong}))
    given = required(loss)
    if given is not None:
        expect_error("reduction", lambda: type(loss)(reduction="average", **given))


def _wrong_calls(loss: Loss, output: Tensor, target: Tensor) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "output", {"output": output.long()}
    yield "target", {"target": target[:-1]}
    yield "sample_weight", {"sample_weight": torch.ones(ROWS + 1)}
    yield "sample_weight", {"sample_weight": -torch.ones(ROWS)}
    yield "sample_weight", {"sample_weight": torch.ones(ROWS, dtype=torch.int64)}
    yield "output", {"output": output.masked_fill(torch.arange(output.numel()).reshape(output.shape) == 1, math.nan)}
    for refused in loss.kind.refused(target, CLASSES):
        yield "target", {"target": refused}
    if not loss.kind.flat:
        yield "output", {"output": output[:, 0]}
    if loss.needs_index:
        yield "index", {"index": None}
        yield "index", {"index": torch.zeros(ROWS)}
