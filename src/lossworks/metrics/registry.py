"""The metrics that a comparison reports, by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from lossworks.checks import check_choice
from lossworks.metrics import classification, regression, stacked

__all__ = ["METRICS", "WORST_GROUP", "Metric", "Task", "find_metric", "metrics_for", "worst_group"]

Task = Literal["binary", "multiclass", "real"]
WORST_GROUP = "worst_group_"
"""What the name of a metric of the worst group begins with."""


@dataclass(frozen=True)
class Metric:
    """A number for a model's predictions; calling it calls its function.

    Args:
        name: What it is called on the command line and in tables.
        title: What it is called in prose.
        function: ``(prediction, target) -> float``.
        higher_is_better: Whether larger is better.
        tasks: The tasks that it is for.
        bounded01: Whether it lies in [0, 1], so that differences of 0.01 mean the same everywhere.
        needs: What its prediction is: class ``"probabilities"``, or ``"values"`` in the target's unit.
        score: The same for many models at once on raw outputs, larger better, for early stopping; for calibration
            error, which a useless model can have at 0, the log-loss instead.
        of_groups: Whether it is the worst over groups of rows; ``function`` and ``score`` are then those of one group.
    """

    name: str
    title: str
    function: Callable[[Any, Any], float]
    higher_is_better: bool
    tasks: tuple[Task, ...]
    bounded01: bool
    needs: Literal["probabilities", "values"]
    score: stacked.StackedScore
    of_groups: bool = False

    def __call__(self, prediction: Any, target: Any) -> float:
        """The metric of these predictions."""
        return self.function(prediction, target)

    @property
    def of_one_group(self) -> str:
        """The name of the metric that each group has."""
        return self.name.removeprefix(WORST_GROUP)

    def by_group(self, prediction: Any, target: Any, group: Any) -> dict[int, float]:
        """The metric of each group that has rows; ``group`` is a number a row."""
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
    binary_only: bool = False,
) -> Metric:
    tasks: tuple[Task, ...] = ("binary",) if binary_only else ("binary", "multiclass")
    return Metric(name, title, function, higher, tasks, bounded, "probabilities", score)


_ALL = (
    _classes("accuracy", "accuracy", classification.accuracy, stacked.accuracy),
    _classes("balanced_accuracy", "balanced accuracy", classification.balanced_accuracy, stacked.balanced_accuracy),
    _classes("macro_f1", "macro F1", classification.macro_f1, stacked.macro_f1),
    _classes("log_loss", "log-loss", classification.log_loss, stacked.log_loss, higher=False, bounded=False),
    _classes("ece", "calibration error", classification.expected_calibration_error, stacked.log_loss, higher=False),
    _classes("auroc", "AUROC", classification.auroc, stacked.auroc, binary_only=True),
    _classes(
        "average_precision",
        "average precision",
        classification.average_precision,
        stacked.average_precision,
        binary_only=True,
    ),
    Metric("rmse", "RMSE", regression.rmse, False, ("real",), False, "values", stacked.rmse),
    Metric("mae", "MAE", regression.mae, False, ("real",), False, "values", stacked.mae),
    Metric("r2", "R²", regression.r2, True, ("real",), False, "values", stacked.r2),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by its name, in the order in which tables show them."""


def metrics_for(task: Task) -> tuple[Metric, ...]:
    """The metrics of a task.

    >>> [metric.name for metric in metrics_for("real")]
    ['rmse', 'mae', 'r2']
    """
    check_choice("task", task, get_args(Task))
    return tuple(metric for metric in _ALL if task in metric.tasks)


def worst_group(metric: Metric) -> Metric:
    """The same of the worst group of rows.

    >>> worst_group(METRICS["accuracy"]).name
    'worst_group_accuracy'
    """
    if not isinstance(metric, Metric):
        raise TypeError(f"metric must be a Metric, got {type(metric).__name__}")
    name = metric.of_one_group
    return replace(
        metric, name=f"{WORST_GROUP}{name}", title=f"{METRICS[name].title} of the worst group", of_groups=True
    )


def find_metric(metric: str, task: Task | None = None) -> Metric:
    """The metric of this name, if the task has it; the error lists those it has and suggests the nearest.

    ``worst_group_`` before a metric's name is that metric of the worst group.

    >>> find_metric("rmse", "real").higher_is_better
    False
    >>> find_metric("worst_group_accuracy", "binary").title
    'accuracy of the worst group'
    """
    known = [one.name for one in (_ALL if task is None else metrics_for(task))]
    if isinstance(metric, str) and metric.startswith(WORST_GROUP):
        return worst_group(METRICS[check_choice("metric", metric.removeprefix(WORST_GROUP), known)])
    return METRICS[check_choice("metric", metric, known)]
