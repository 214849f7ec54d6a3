"""Scores of many models at once, on raw outputs, for early stopping; larger is better, -inf for a model that diverged.

All take ``outputs`` ``(R, n, k)`` of R models (``k = 1`` for one logit or one value), ``target`` ``(R, n)`` and
``mask`` ``(R, n)``, false for padding rows, and return ``(R,)``.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lossworks.checks import check_floating, check_real, check_tensor, readable

__all__ = [
    "TEMPERATURES",
    "StackedScore",
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "log_loss",
    "macro_f1",
    "mae",
    "poisson_deviance",
    "r2",
    "rmse",
]

StackedScore: TypeAlias = Callable[
    [Float[Tensor, "models n outputs"], Shaped[Tensor, "models n"], Bool[Tensor, "models n"]], Float[Tensor, " models"]
]

TEMPERATURES = tuple(2.0 ** (half / 2) for half in range(-6, 9))
"""The temperatures that :func:`log_loss` tries: 1/8 to 16 in steps of the root of 2."""


def _finite_only(score: StackedScore) -> StackedScore:
    """The score, with padding set to zeros before it and -inf for models whose outputs are not finite."""

    @functools.wraps(score)
    def guarded(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        _check(outputs, target, mask)
        outputs = torch.where(mask[..., None], outputs, 0)
        finite = outputs.isfinite().flatten(1).all(dim=1)
        target = torch.where(mask, target, 0)
        return torch.where(finite, score(outputs, target, mask), -torch.inf)

    return guarded


def _check(outputs: Tensor, target: Tensor, mask: Tensor) -> None:
    check_floating("outputs", outputs)
    check_real("target", target)
    check_tensor("mask", mask)
    if outputs.ndim != 3 or not outputs.shape[2]:
        raise ValueError(f"outputs must have shape (R, n, k) with k >= 1, got {tuple(outputs.shape)}")
    for name, tensor in (("target", target), ("mask", mask)):
        if tensor.shape != outputs.shape[:2]:
            raise ValueError(f"{name} must have shape {tuple(outputs.shape[:2])}, got {tuple(tensor.shape)}")
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")


@_finite_only
def accuracy(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The share of rows answered right."""
    return _mean(_answers(outputs) == target, mask)


@_finite_only
def balanced_accuracy(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean recall over the classes that have rows."""
    right, actual, _ = _class_counts(outputs, target, mask)
    return _mean(right / actual.clamp_min(1), actual > 0)


@_finite_only
def macro_f1(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean F1 over the classes in the target or among the answers."""
    right, actual, answered = _class_counts(outputs, target, mask)
    return _mean(2 * right / (actual + answered).clamp_min(1), actual + answered > 0)


@_finite_only
def log_loss(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The negative log-loss at each model's best of :data:`TEMPERATURES`, since calibration comes after training."""
    logits = _class_logits(outputs)
    chosen = logits.gather(2, _labels(outputs, target)[..., None])[..., 0]
    # One temperature after the other: the outputs of many models are large, a stack of scaled copies larger still.
    return torch.stack([_mean(chosen / t - (logits / t).logsumexp(2), mask) for t in TEMPERATURES]).amax(dim=0)


@_finite_only
def auroc(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The chance that a row of class 1 is scored above one of class 0; 0.5 where only one class has rows."""
    scores, positive = _margins(outputs), (target == 1) & mask
    ordered = scores.masked_fill(~mask, torch.inf).sort(dim=1).values
    ranks = (torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True) + 1) / 2
    ones = positive.sum(dim=1)
    pairs = ones * (mask.sum(dim=1) - ones)
    above = torch.where(positive, ranks, 0).sum(dim=1) - ones * (ones + 1) / 2
    return torch.where(pairs > 0, above / pairs.clamp_min(1), 0.5)


@_finite_only
def average_precision(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean precision at the rows of class 1, ties taken together; 0 where it has no rows."""
    scores, positive = _margins(outputs), (target == 1) & mask
    above, right = (_at_least(scores, rows) for rows in (mask, positive))
    return _mean(right / above.clamp_min(1), positive)


@_finite_only
def rmse(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The negative root mean squared error."""
    return -_mean((_values(outputs) - target).square(), mask).sqrt()


@_finite_only
def mae(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The negative mean absolute error."""
    return -_mean((_values(outputs) - target).abs(), mask)


@_finite_only
def r2(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The share of the target's variance explained; 1 or 0 for a target that does not vary, as in the plain R²."""
    left = _mean((_values(outputs) - target).square(), mask)
    spread = _mean((target - _mean(target, mask)[:, None]).square(), mask)
    return torch.where(spread > 0, 1 - left / torch.where(spread > 0, spread, 1), (left == 0).to(left.dtype))


@_finite_only
def poisson_deviance(outputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The negative mean Poisson deviance of expected counts; one that is not > 0 counts as the smallest that is."""
    expected = _values(outputs).clamp_min(torch.finfo(outputs.dtype).tiny)
    observed = target.to(expected.dtype)
    return -2 * _mean(torch.xlogy(observed, observed) - torch.xlogy(observed, expected) - observed + expected, mask)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the rows that count, 0 where there are none."""
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def _values(outputs: Tensor) -> Tensor:
    if outputs.shape[2] != 1:
        raise ValueError(f"outputs must have one column, the predicted value, got {outputs.shape[2]}")
    return outputs[..., 0]


def _class_logits(outputs: Tensor) -> Tensor:
    """Logits a class; a single logit becomes two whose difference it is."""
    return outputs if outputs.shape[2] > 1 else torch.cat([torch.zeros_like(outputs), outputs], dim=2)


def _margins(outputs: Tensor) -> Tensor:
    """The score of class 1 over class 0."""
    if outputs.shape[2] > 2:
        raise ValueError(f"outputs must have 1 or 2 columns for this score, got {outputs.shape[2]}")
    return (outputs[..., -1] - outputs[..., 0] if outputs.shape[2] == 2 else outputs[..., 0]).contiguous()


def _answers(outputs: Tensor) -> Tensor:
    return _class_logits(outputs).argmax(dim=2)


def _labels(outputs: Tensor, target: Tensor) -> Tensor:
    labels, classes = target.long(), max(outputs.shape[2], 2)
    if readable(labels) and labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"target must hold classes in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
    return labels


def _class_counts(outputs: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per model and class: rows answered right, rows of the class, rows answered with the class."""
    answers, target, classes = _answers(outputs), _labels(outputs, target), max(outputs.shape[2], 2)

    def count(labels: Tensor, rows: Tensor) -> Tensor:
        empty = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
        return empty.scatter_add_(1, labels, rows.long())

    return count(target, mask & (answers == target)), count(target, mask), count(answers, mask)


def _at_least(scores: Tensor, rows: Tensor) -> Tensor:
    """For each row, how many of ``rows`` score no less."""
    ordered = scores.masked_fill(~rows, -torch.inf).sort(dim=1).values
    return scores.shape[1] - torch.searchsorted(ordered, scores)
