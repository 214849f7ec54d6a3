"""The registry of the metrics that a comparison reports."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossworks.checks import check_choice, check_sequence
from lossworks.metrics import classification, regression, stacked

__all__ = ["METRICS", "WORST_GROUP", "Metric", "find_metric", "worst_group"]

WORST_GROUP = "worst_group_"
"""The beginning of the name of a metric of the worst group."""


def _as_it_is(prediction: Any) -> Any:
    return prediction


def _of_class_one(prediction: Any) -> Any:
    return prediction[:, 1] if prediction.ndim == 2 else prediction


@dataclass(frozen=True)
class Metric:
    """A metric, which measures a model's predictions by one number; calling the metric calls its function.

    Args:
        name: The name on the command line and in tables.
        title: The name in prose.
        function: The function ``(prediction, target) -> float``.
        higher_is_better: Whether a larger value is better.
        bounded01: Whether the metric lies in [0, 1], so that a difference of 0.01 means the same on all data.
        score: The score for early stopping, computed for many models at once from raw outputs; larger is better. It is
            the same metric, except that for the calibration error, which can be 0 for a useless model, it is the
            log-loss.
        reads: The function that turns the task's prediction, class probabilities ``(n, C)`` or values ``(n,)``, into
            what ``function`` takes: the whole prediction, or the probabilities of class 1 alone.
        by_class: Whether classes may count equally whatever their number of rows, so that the precision of the metric
            depends on the rows of the rarest class.
        of_groups: Whether it is the worst value over groups of rows; ``function`` and ``score`` are then those of one
            group.
    """

    name: str
    title: str
    function: Callable[[Any, Any], float]
    higher_is_better: bool
    bounded01: bool
    score: stacked.StackedScore
    reads: Callable[[Any], Any] = _as_it_is
    by_class: bool = False
    of_groups: bool = False

    def __call__(self, prediction: Any, target: Any) -> float:
        """Compute the metric of these predictions."""
        return self.function(prediction, target)

    @property
    def of_one_group(self) -> str:
        """The name of the metric that is computed for each single group."""
        return self.name.removeprefix(WORST_GROUP)

    def by_group(self, prediction: Any, target: Any, group: Any) -> dict[int, float]:
        """Compute the metric for each group that has rows; ``group`` holds the number of each row's group."""
        return {
            int(g): float(self.function(prediction[group == g], target[group == g])) for g in np.unique(group).tolist()
        }

    def worst_of(self, values: Iterable[float]) -> float:
        """The worst of these values."""
        return (min if self.higher_is_better else max)(values)


def _classes(
    name: str,
    title: str,
    function: Callable[[Any, Any], float],
    score: stacked.StackedScore,
    *,
    higher: bool = True,
    bounded: bool = True,
    by_class: bool = True,
) -> Metric:
    return Metric(name, title, function, higher, bounded, score, by_class=by_class)


def _two_classes(name: str, title: str, function: Callable[[Any, Any], float], score: stacked.StackedScore) -> Metric:
    return Metric(name, title, function, True, True, score, reads=_of_class_one, by_class=True)


_ALL = (
    _classes("accuracy", "accuracy", classification.accuracy, stacked.accuracy, by_class=False),
    _classes("balanced_accuracy", "balanced accuracy", classification.balanced_accuracy, stacked.balanced_accuracy),
    _classes("macro_f1", "macro F1", classification.macro_f1, stacked.macro_f1),
    _classes("log_loss", "log-loss", classification.log_loss, stacked.log_loss, higher=False, bounded=False),
    _classes("ece", "calibration error", classification.expected_calibration_error, stacked.log_loss, higher=False),
    _two_classes("auroc", "AUROC", classification.auroc, stacked.auroc),
    _two_classes("average_precision", "average precision", classification.average_precision, stacked.average_precision),
    Metric("rmse", "RMSE", regression.rmse, False, False, stacked.rmse),
    Metric("mae", "MAE", regression.mae, False, False, stacked.mae),
    Metric("r2", "R²", regression.r2, True, False, stacked.r2),
    Metric("poisson_deviance", "Poisson deviance", regression.poisson_deviance, False, False, stacked.poisson_deviance),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""All metrics by name; each task says which of them it uses."""


def worst_group(metric: Metric) -> Metric:
    """The metric whose value is the worst over groups of rows.

    >>> worst_group(METRICS["accuracy"]).name
    'worst_group_accuracy'
    """
    if not isinstance(metric, Metric):
        raise TypeError(f"metric must be a Metric, got {type(metric).__name__}")
    if metric.of_groups:
        return metric
    name, title = f"{WORST_GROUP}{metric.name}", f"{metric.title} of the worst group"
    return replace(metric, name=name, title=title, of_groups=True)


def find_metric(metric: str, among: Sequence[Metric] | None = None) -> Metric:
    """The metric of this name.

    A name that begins with ``worst_group_`` is that metric of the worst group.

    Args:
        metric: The name of the metric.
        among: The metrics to look through, such as a task's own; by default all.

    Raises:
        ValueError: no metric has this name; the message lists the names and suggests the nearest.
        TypeError: ``among`` is not a sequence of metrics.

    >>> find_metric("rmse").higher_is_better
    False
    >>> find_metric("worst_group_accuracy").title
    'accuracy of the worst group'
    """
    if among is not None:
        check_sequence("among", among)
        for number, one in enumerate(among):
            if not isinstance(one, Metric):
                raise TypeError(f"among[{number}] must be a Metric, got {type(one).__name__}")
    known = {one.name: one for one in (_ALL if among is None else among)}
    if isinstance(metric, str) and metric.startswith(WORST_GROUP):
        return worst_group(known[check_choice("metric", metric.removeprefix(WORST_GROUP), known)])
    return known[check_choice("metric", metric, known)]
