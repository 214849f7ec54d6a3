"""Metrics of class predictions, from probabilities ``(n, C)``, or ``(n,)`` of class 1 where there are two classes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from lossworks.checks import check_between, check_int
from lossworks.metrics.arrays import Array, Classes, Floats, as_classes, as_floats
from lossworks.roles import cite

__all__ = [
    "ReliabilityBins",
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "expected_calibration_error",
    "log_loss",
    "macro_f1",
    "per_class_recall",
    "reliability_bins",
    "tail_class_accuracy",
]

MOST_BINS = 1_000_000


@dataclass(frozen=True)
class ReliabilityBins:
    """The confidence and the accuracy in each bin; an empty bin has NaN in both.

    Attributes:
        edges: ``(bins + 1,)``, from 0 to 1.
        count: ``(bins,)``, how many rows are in each bin.
        confidence: ``(bins,)``, the mean probability of the predicted class.
        accuracy: ``(bins,)``, the share of rows predicted right.
    """

    edges: Floats
    count: Classes
    confidence: Floats
    accuracy: Floats


def accuracy(probabilities: Float[Array, "n *classes"], target: Int[Array, " n"]) -> float:
    r"""Accuracy: the share of rows whose most probable class is the true one.

    .. math::
        \frac1n \sum_i [\arg\max_k p_{ik} = y_i]

    Args:
        probabilities: ``(n, C)``, any scores of which the largest is the answer; or ``(n,)``, probabilities of class 1.
        target: ``(n,)``, the classes.

    Raises:
        ValueError: shapes that don't match, NaN, a class outside ``[0, C)``.

    >>> accuracy(np.array([0.2, 0.9, 0.6]), np.array([0, 1, 0]))
    0.6666666666666666
    """
    scores, target = _class_scores(probabilities, target)
    return float((scores.argmax(axis=1) == target).mean())


def per_class_recall(
    probabilities: Float[Array, "n *classes"], target: Int[Array, " n"]
) -> Float[np.ndarray, " classes"]:
    r"""Recall of each class: the accuracy on the class's own rows; NaN for a class without rows.

    .. math::
        r_k = \frac{1}{n_k} \sum_{i : y_i = k} [\arg\max_j p_{ij} = k]

    Args and raises: as :func:`accuracy`. Returns ``(C,)``.

    >>> per_class_recall(np.array([0.2, 0.9, 0.6]), np.array([0, 1, 0]))
    array([0.5, 1. ])
    """
    right, actual, _ = _class_counts(*_class_scores(probabilities, target))
    return np.divide(right, actual, out=np.full(len(actual), np.nan), where=actual > 0)


def balanced_accuracy(probabilities: Float[Array, "n *classes"], target: Int[Array, " n"]) -> float:
    r"""Balanced accuracy: the mean of the classes' recalls, so that each class counts the same however rare.

    .. math::
        \frac{1}{|K|} \sum_{k \in K} r_k, \qquad K = \{k : n_k > 0\}

    Args and raises: as :func:`accuracy`.

    >>> balanced_accuracy(np.array([0.2, 0.9, 0.6]), np.array([0, 1, 0]))
    0.75
    """
    return float(np.nanmean(per_class_recall(probabilities, target)))


@cite("sow2024doubly", helps=("worst case", "imbalance"))
def tail_class_accuracy(correct: Array, target: Int[Array, " n"], fraction: float = 0.3) -> float:
    r"""Tail-class accuracy: the mean accuracy of the classes that do worst.

    .. math::
        \frac{1}{m} \sum_{k \in \text{the } m \text{ smallest}} r_k, \qquad m = \lceil f\, |K| \rceil

    Args:
        correct: Whether each row is predicted right, 0 or 1, ``(n,)``; under attack, if robust accuracy is wanted.
        target: The rows' classes, integers.
        fraction: The share f of the classes that occur, in (0, 1].

    Raises:
        ValueError: shapes that differ, no rows, ``fraction`` outside (0, 1].

    Papers: sow2024doubly

    >>> tail_class_accuracy(np.array([1, 1, 0, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2]), fraction=0.5)
    0.25
    """
    check_between("fraction", fraction, 0, 1, open_low=True)
    correct, target = as_floats("correct", correct), as_classes("target", target)
    if correct.shape != target.shape or target.ndim != 1 or not len(target):
        raise ValueError(
            f"correct and target must have one shape (n,) with n >= 1, got {correct.shape} and {target.shape}"
        )
    _, place = np.unique(target, return_inverse=True)
    recall = np.bincount(place, weights=correct) / np.bincount(place)
    return float(np.sort(recall)[: math.ceil(fraction * len(recall) - 1e-9)].mean())


def macro_f1(probabilities: Float[Array, "n *classes"], target: Int[Array, " n"]) -> float:
    r"""Macro F1: the mean of the classes' F1, over the classes that occur in the target or among the predictions.

    .. math::
        F_k = \frac{2\,\#\{\hat y = k = y\}}{\#\{\hat y = k\} + \#\{y = k\}}

    Args and raises: as :func:`accuracy`.

    >>> round(macro_f1(np.array([0.2, 0.9, 0.6]), np.array([0, 1, 0])), 4)
    0.6667
    """
    right, actual, predicted = _class_counts(*_class_scores(probabilities, target))
    seen = actual + predicted > 0
    return float((2 * right[seen] / (actual + predicted)[seen]).mean())


def log_loss(probabilities: Float[Array, "n *classes"], target: Int[Array, " n"]) -> float:
    r"""Log-loss: the mean negative log-probability of the true class, in nats.

    .. math::
        -\frac1n \sum_i \log p_{i y_i}

    A probability below 2.2e-16, the resolution of float64, counts as that, so that the mean stays finite.

    Args:
        probabilities: ``(n, C)`` with rows that sum to 1; or ``(n,)``, probabilities of class 1.
        target: ``(n,)``, the classes.

    Raises:
        ValueError: as :func:`accuracy`; probabilities outside [0, 1] or rows that don't sum to 1.

    >>> round(log_loss(np.array([0.5, 0.25]), np.array([1, 0])), 4)
    0.4904
    """
    p, target = _class_probabilities(probabilities, target)
    return float(-np.log(np.clip(p[np.arange(len(p)), target], np.finfo(np.float64).eps, 1)).mean())


def reliability_bins(
    probabilities: Float[Array, "n *classes"], target: Int[Array, " n"], *, bins: int = 15
) -> ReliabilityBins:
    r"""The confidence and the accuracy in equal-width bins of confidence, as a reliability diagram shows them.

    .. math::
        B_m = \{ i : \max_k p_{ik} \in (\tfrac{m-1}{M}, \tfrac{m}{M}] \}

    Args and raises: as :func:`log_loss`, and ``bins`` outside 1 to 1,000,000.

    >>> reliability_bins(np.array([0.9, 0.8]), np.array([1, 0]), bins=2).accuracy
    array([nan, 0.5])
    """
    check_int("bins", bins, low=1, high=MOST_BINS)
    p, target = _class_probabilities(probabilities, target)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == target
    edges = np.linspace(0, 1, bins + 1)
    # An edge belongs to the bin below it, and a confidence that rounding put above 1 to the last bin.
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(number, confidence, minlength=bins) / count
        mean_right = np.bincount(number, right, minlength=bins) / count
    return ReliabilityBins(edges, count, mean_confidence, mean_right)


@cite("guo2017calibration", helps=("calibration",))
def expected_calibration_error(
    probabilities: Float[Array, "n *classes"], target: Int[Array, " n"], *, bins: int = 15
) -> float:
    r"""Expected calibration error: how far the confidence is from the accuracy, bin by bin, averaged over the rows.

    .. math::
        \sum_m \frac{|B_m|}{n} \bigl| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \bigr|

    It is 0 when, for instance, four in five of the answers given with a confidence of 80 % are right. The confidence is
    the probability of the predicted class, with two classes too. The estimate is biased upwards when there are few
    rows.

    Args and raises: as :func:`reliability_bins`.

    Papers: guo2017calibration

    >>> expected_calibration_error(np.array([1.0, 1.0, 0.0, 0.0]), np.array([1, 0, 0, 0]))
    0.25
    """
    found = reliability_bins(probabilities, target, bins=bins)
    return float(np.nansum(found.count * np.abs(found.accuracy - found.confidence)) / found.count.sum())


def auroc(scores: Float[Array, "n *classes"], target: Int[Array, " n"]) -> float:
    r"""Area under the ROC curve: the chance that a row of class 1 is scored above one of class 0, ties counting half.

    .. math::
        \frac{1}{n_0 n_1} \sum_{y_i = 1} \sum_{y_j = 0} [s_i > s_j] + \tfrac12 [s_i = s_j]

    Args:
        scores: ``(n,)``, larger means class 1; or ``(n, 2)``, of which the second less the first is taken.
        target: ``(n,)``, 0 or 1.

    Returns:
        A number in [0, 1]; NaN where only one class has rows.

    Raises:
        ValueError: shapes that don't match, NaN, more than two classes.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    0.875
    """
    s, positive = _binary_scores(scores, target)
    ordered = np.sort(s)
    below, up_to = np.searchsorted(ordered, s, side="left"), np.searchsorted(ordered, s, side="right")
    ones = int(positive.sum())
    zeros = len(s) - ones
    if not ones or not zeros:
        return float("nan")
    rank_sum = ((below + up_to + 1) / 2)[positive].sum()
    return float((rank_sum - ones * (ones + 1) / 2) / (ones * zeros))


def average_precision(scores: Float[Array, "n *classes"], target: Int[Array, " n"]) -> float:
    r"""Average precision: the mean of the precision at each row of class 1, going down the scores, ties together.

    .. math::
        \frac{1}{n_1} \sum_{y_i = 1} \frac{\#\{j : s_j \ge s_i, y_j = 1\}}{\#\{j : s_j \ge s_i\}}

    Args, returns and raises: as :func:`auroc`; NaN where class 1 has no rows.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])).__round__(4)
    0.8333
    """
    s, positive = _binary_scores(scores, target)
    found = s[positive]
    if not len(found):
        return float("nan")
    above = len(s) - np.searchsorted(np.sort(s), found, side="left")
    right = len(found) - np.searchsorted(np.sort(found), found, side="left")
    return float((right / above).mean())


def _class_scores(scores: Array, target: Array) -> tuple[Floats, Classes]:
    """Scores as ``(n, C)`` and the classes, checked."""
    values, classes = as_floats("probabilities", scores), as_classes("target", target)
    if values.ndim not in (1, 2) or len(values) != len(classes):
        raise ValueError(f"probabilities must have shape ({len(classes)},) or ({len(classes)}, C), got {values.shape}")
    if values.ndim == 1:
        _check_in_unit_interval(values)
        values = np.stack([1 - values, values], axis=1)
    if classes.max() >= values.shape[1]:
        row = int(classes.argmax())
        raise ValueError(f"target must be in [0, {values.shape[1]}), got {classes[row]} in row {row}")
    return values, classes


def _class_probabilities(probabilities: Array, target: Array) -> tuple[Floats, Classes]:
    """Probabilities as ``(n, C)`` with rows that sum to 1, and the classes, checked."""
    values, classes = _class_scores(probabilities, target)
    _check_in_unit_interval(values)
    off = np.abs(values.sum(axis=1) - 1)
    # Each entry may be off by half a rounding of its own size, and the entries add up to 1.
    half = torch.finfo(probabilities.dtype).eps / 2 if isinstance(probabilities, torch.Tensor) else 0.0
    if off.max() > max(1e-3, half):
        row = int(off.argmax())
        raise ValueError(f"probabilities must sum to 1 in each row, got {values[row].sum():g} in row {row}")
    return values, classes


def _check_in_unit_interval(values: Floats) -> None:
    wrong = (values < 0) | (values > 1 + 1e-6)
    if wrong.any():
        raise ValueError(f"probabilities must be in [0, 1], got {values[wrong][0]:g}: are these logits?")


def _class_counts(scores: Floats, target: Classes) -> tuple[Classes, Classes, Classes]:
    """Per class: rows predicted right, rows of the class, rows predicted as the class."""
    answer, classes = scores.argmax(axis=1), scores.shape[1]
    return (
        np.bincount(target[answer == target], minlength=classes),
        np.bincount(target, minlength=classes),
        np.bincount(answer, minlength=classes),
    )


def _binary_scores(scores: Array, target: Array) -> tuple[Floats, np.ndarray]:
    """Scores of class 1 as ``(n,)``, and which rows are of class 1."""
    values, classes = as_floats("scores", scores), as_classes("target", target)
    if values.ndim == 2 and values.shape[1] == 2:
        with np.errstate(invalid="ignore"):
            values = values[:, 1] - values[:, 0]
        if np.isnan(values).any():
            raise ValueError("scores must have a difference in each row, got two infinities of the same sign")
    if values.shape != classes.shape:
        raise ValueError(f"scores must have shape ({len(classes)},) or ({len(classes)}, 2), got {values.shape}")
    if classes.max() > 1:
        row = int(classes.argmax())
        raise ValueError(f"target must be 0 or 1, got {classes[row]} in row {row}")
    return values, classes == 1
