"""The checks of a loss at the edges of its domain: masked classes, common offsets and small or large residuals."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from lossworks.checks import HALF
from lossworks.fused import linear_loss
from lossworks.roles import CLASSES as CLASS_TARGETS
from lossworks.roles import REAL, BatchLoss, Loss
from lossworks.testing.inputs import CLASSES, example

__all__ = [
    "common_offset",
    "finite_at_extremes",
    "lost_labels",
    "masked_classes",
    "second_derivative_finite",
    "small_residuals",
]

AnyLoss = Loss | BatchLoss
EXTREME = 1e4
VERY_LOW = -1e15
"""A finite logit at which every softmax in float64 has given the class no probability for long."""
OFFSET = 1e6
"""A number that added to all logits leaves a few digits of them in float32."""
RESIDUALS = (0.0, 1e-4, -1e-3, 1e-2, 0.5, 1.0, -50.0, 1e3, -1e3)


def finite_at_extremes(loss: AnyLoss) -> None:
    """Values and gradients are finite at outputs of 0 and ±1e4 in every precision, under autocast and fused too.

    A gradient in half precision may be infinite only where the true one is beyond that precision's largest number.
    """
    for fill, output, target, extra in _extremes(loss):
        true = _value_and_gradient(loss, output, target, extra)[1]
        for dtype in (torch.float64, torch.float32, *HALF):
            given = target.to(dtype) if target.is_floating_point() else target
            forms = {"": partial(_value_and_gradient, loss)}
            if dtype in HALF:
                forms[" under autocast"] = partial(_value_and_gradient, loss, autocast=dtype)
            if isinstance(loss, Loss) and _has_fused_form(loss):
                forms[", fused"] = partial(_fused, loss)
            for form, slopes in forms.items():
                value, gradient = slopes(output.to(dtype), given, extra)
                where = f"at {fill} outputs in {dtype}{form}"
                assert bool(value.isfinite().all()), f"value {where}: {value.tolist()}"
                beyond = true.abs() > torch.finfo(gradient.dtype).max
                wrong = gradient.isnan() | (gradient.isinf() & ~beyond)
                assert not bool(wrong.any()), f"gradient {where}: {gradient.tolist()}"


def _extremes(loss: AnyLoss) -> Iterator[tuple[str, Tensor, Tensor, dict[str, Any]]]:
    output, target, extra = example(loss)
    first = torch.arange(output.numel()).reshape(output.shape) % CLASSES == 0
    yield "zero", 0 * output, target, extra
    yield "up", 0 * output + EXTREME, target, extra
    yield "down", 0 * output - EXTREME, target, extra
    yield "mixed", EXTREME * output.sign(), target, extra
    yield "one", EXTREME * first.to(output.dtype), target, extra


def _has_fused_form(loss: Loss) -> bool:
    return loss.rowwise and not loss.stochastic and loss.kind is CLASS_TARGETS


def _value_and_gradient(
    loss: AnyLoss, output: Tensor, target: Tensor, extra: dict[str, Any], autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The rows' losses, with the same draws and from the same state as any other call, and their gradient."""
    loss = copy.deepcopy(loss)
    if isinstance(loss, Loss):
        loss.reduction = "none"
    torch.manual_seed(0)
    leaf = output.detach().requires_grad_()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        each = loss(leaf, target, **extra)
    return each.detach(), torch.autograd.grad(each.sum(), leaf)[0]


def _fused(
    loss: Loss, output: Tensor, target: Tensor, extra: dict[str, Any], bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same from the fused form, through a layer that leaves its input as it is but for a bias."""
    leaf, unchanged = output.detach().clone().requires_grad_(), torch.eye(output.shape[1], dtype=output.dtype)
    index = extra.get("index")
    value = linear_loss(leaf, unchanged, target, copy.deepcopy(loss), bias=bias, index=index, reduction="none", chunk=5)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def masked_classes(loss: Loss) -> None:
    """A class at a logit of -inf that is not the label is one at a very low logit: value, gradient, prediction, fused.

    With class-probability targets, this holds for a class of probability 0.
    """
    output, target, extra = example(loss)
    other = ((target + 1) % CLASSES)[:, None]
    certain = torch.eye(CLASSES, dtype=output.dtype)
    targets = [target]
    if loss.soft_targets:
        targets.append(0.75 * certain[target] + 0.25 * certain[(target + 2) % CLASSES])
    masked, low = (output.scatter(1, other, logit) for logit in (-math.inf, VERY_LOW))
    for labels in targets:
        got, wanted = (_value_and_gradient(loss, logits, labels, extra) for logits in (masked, low))
        for name, one, right in zip(("value", "gradient"), got, wanted, strict=True):
            assert_close(one, right, msg=partial("{name} with a masked class: {}".format, name=name))
    assert_close(
        loss.predict(masked), loss.predict(low), msg="predict gives another answer for a masked class: {}".format
    )
    if _has_fused_form(loss):
        bias, kept = torch.zeros(CLASSES, dtype=output.dtype), target.clamp_min(1)
        bias[0] = -math.inf
        got, wanted = (
            _fused(loss, output, kept, extra, bias=bias),
            _value_and_gradient(loss, output + bias, kept, extra),
        )
        for name, one, right in zip(("value", "gradient"), got, wanted, strict=True):
            assert_close(one, right, msg=partial("fused {name} with a masked class: {}".format, name=name))


def lost_labels(loss: Loss) -> None:
    """Where the label itself is at a logit of -inf, neither the value nor the gradient is NaN."""
    output, target, extra = example(loss)
    value, gradient = _value_and_gradient(loss, output.scatter(1, target[:, None], -math.inf), target, extra)
    assert not bool(value.isnan().any()), f"value of a label at -inf: {value.tolist()}"
    assert not bool(gradient.isnan().any()), f"gradient of a label at -inf: {gradient.tolist()}"


def common_offset(loss: Loss) -> None:
    """At logits around 1e6, float32 gives what float64 gives of the same numbers, in the fused form too."""
    output, target, extra = example(loss, dtype=torch.float32)
    shifted = 3 * output + OFFSET
    right = _value_and_gradient(loss, shifted.double(), target, extra)
    found = {"": _value_and_gradient(loss, shifted, target, extra)}
    if _has_fused_form(loss):
        found["fused "] = _fused(loss, shifted, target, extra)
    for form, got in found.items():
        for name, one, wanted in zip(("value", "gradient"), got, right, strict=True):
            assert_close(
                one.double(),
                wanted.double(),
                atol=1e-4,
                rtol=1e-3,
                msg=partial("{form}{name} at a common offset: {}".format, form=form, name=name),
            )


def small_residuals(loss: Loss) -> None:
    """Outputs near the target keep their digits: float32 gives what float64 gives of the same numbers."""
    output = torch.tensor([size for size in RESIDUALS if abs(size) <= 1], dtype=torch.float32)
    target = torch.zeros(len(output))
    got, right = (_value_and_gradient(loss, given, target.to(given.dtype), {}) for given in (output, output.double()))
    for name, one, wanted in zip(("value", "gradient"), got, right, strict=True):
        close = partial(assert_close, atol=1e-30, rtol=1e-4)
        close(one.double(), wanted.double(), msg=partial("{name} of residuals: {}".format, name=name))


def second_derivative_finite(loss: Loss) -> None:
    """The second derivative is finite at outputs (of real numbers: residuals) of 0, near it and far from it."""
    for dtype in (torch.float32, torch.float64):
        output, target, extra = example(loss, dtype=dtype)
        centre = target if loss.kind is REAL and target.shape == output.shape else torch.zeros_like(output)
        for size in RESIDUALS:
            leaf = (centre + output.sign() * size).requires_grad_()
            frozen = copy.deepcopy(loss)
            torch.manual_seed(0)
            (first,) = torch.autograd.grad(frozen(leaf, target, **extra), leaf, create_graph=True)
            if not first.requires_grad:
                return
            (second,) = torch.autograd.grad(
                (first * torch.arange(1, first.numel() + 1).reshape(first.shape)).sum(), leaf, allow_unused=True
            )
            finite = second is None or bool(second.isfinite().all())
            assert finite, f"second derivative at outputs of ±{size:g} in {dtype}: {second.tolist()}"
