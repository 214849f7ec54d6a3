"""The evaluation of one trained model: its metrics on test rows, and its portrait for the report."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from lossworks.comparison.read.dataset import Dataset
from lossworks.metrics.registry import Metric, worst_group

__all__ = ["evaluate", "thinned"]

CURVE_POINTS = 60


def evaluate(
    dataset: Dataset,
    metric: Metric,
    *,
    inner: tuple[np.ndarray, Tensor] | None,
    test: tuple[np.ndarray, Tensor],
) -> dict[str, Any]:
    """Evaluate a replica, and return its results.

    Args:
        dataset: The data.
        metric: The metric that decides; if the rows have groups, its worst value over the groups is reported too.
        inner: The inner rows and their outputs, on which the predictions are calibrated; None to leave the outputs
            uncalibrated.
        test: The test rows and their outputs.
    """
    (rows, outputs), task = test, dataset.task
    if not bool(outputs.isfinite().all()) or (inner is not None and not bool(inner[1].isfinite().all())):
        grouped = {} if dataset.group is None else {"groups": [math.nan] * len(dataset.group_names)}
        return {"metrics": dict.fromkeys(_metric_names(dataset, metric), math.nan), "diverged": True} | grouped
    fitted = task.calibration(None if inner is None else (inner[1], dataset.target[inner[0]]))
    temperature = 1.0 if fitted is None else fitted
    found = _scores(dataset, metric, rows, task.predicted(outputs, temperature))
    found |= {} if fitted is None else {"temperature": fitted}
    return found | {"portrait": task.portrait(outputs, temperature, dataset.target[rows])}


def _metric_names(dataset: Dataset, metric: Metric) -> list[str]:
    groups = [worst_group(metric).name] if dataset.group is not None else []
    return [known.name for known in dataset.task.metrics] + groups


def _scores(dataset: Dataset, metric: Metric, rows: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    """The metrics, and if the rows have groups the deciding metric of each group, None for a group without rows."""
    target = dataset.target[rows]
    values = {known.name: float(known(known.reads(prediction), target)) for known in dataset.task.metrics}
    if dataset.group is None:
        return {"metrics": values}
    decides = worst_group(metric)
    each = decides.by_group(decides.reads(prediction), target, dataset.group[rows])
    values[decides.name] = decides.worst_of(each.values())
    return {"metrics": values, "groups": [each.get(group) for group in range(len(dataset.group_names))]}


def thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Thin a learning curve to at most :data:`CURVE_POINTS` points."""
    keep = np.unique(np.linspace(0, max(len(curve) - 1, 0), min(CURVE_POINTS, len(curve))).astype(int))
    return [(int(curve[i][0]), float(curve[i][1])) for i in keep]
