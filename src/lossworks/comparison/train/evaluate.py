"""What one trained replica is worth: its metrics on test rows, and the small facts that the report draws."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossworks.calibrate import TemperatureScaling
from lossworks.comparison.handover.model import class_probabilities
from lossworks.comparison.read.dataset import Dataset
from lossworks.metrics import per_class_recall, reliability_bins
from lossworks.metrics.registry import find_metric, metrics_for, worst_group

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the residuals that the report shows."""
PAIRS = 40
"""How many predicted values a replica keeps for the report."""
CURVE_POINTS = 60


def fitted_temperature(logits: Tensor, target: np.ndarray) -> float:
    """The temperature that makes the inner rows' probabilities most likely."""
    scaler = TemperatureScaling().fit(logits.double(), torch.from_numpy(target))
    return float(scaler.temperature)


def evaluate(
    dataset: Dataset,
    metric: str,
    *,
    inner: tuple[np.ndarray, Tensor] | None,
    test: tuple[np.ndarray, Tensor],
) -> dict[str, Any]:
    """The results of a replica.

    Args:
        dataset: The data.
        metric: The metric that decides; with groups its worst over the groups is reported too.
        inner: Inner rows and their outputs, on which the temperature is fitted; None where the outputs are already
            log-probabilities to be taken as they are.
        test: Test rows and their outputs.
    """
    rows, outputs = test
    target = dataset.target[rows]
    if not bool(outputs.isfinite().all()) or (inner is not None and not bool(inner[1].isfinite().all())):
        grouped = {} if dataset.group is None else {"groups": [math.nan] * len(dataset.group_names)}
        return {"metrics": dict.fromkeys(_metric_names(dataset, metric), math.nan), "diverged": True} | grouped
    if dataset.task == "real":
        values = outputs.double().numpy()
        return _scores(dataset, metric, rows, values) | {"residuals": _residuals(values, target)}
    temperature = fitted_temperature(inner[1], dataset.target[inner[0]]) if inner is not None else 1.0
    outputs = outputs.double()
    before, after = (class_probabilities(outputs, t).numpy() for t in (1.0, temperature))
    ece = find_metric("ece", dataset.task)
    return _scores(dataset, metric, rows, after) | {
        "temperature": temperature,
        "ece_before": ece(before, target),
        "recall": [None if np.isnan(r) else float(r) for r in per_class_recall(after, target)],
        "reliability": {"before": _bins(before, target), "after": _bins(after, target)},
    }


def worst_group_name(metric: str) -> str:
    """What the metric of the worst group is called."""
    return worst_group(find_metric(metric)).name


def _metric_names(dataset: Dataset, metric: str) -> list[str]:
    groups = [worst_group_name(metric)] if dataset.group is not None else []
    return [known.name for known in metrics_for(dataset.task)] + groups


def _scores(dataset: Dataset, metric: str, rows: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    """The metrics, and with groups the deciding one of each, None of those without rows."""
    target = dataset.target[rows]
    values = {
        known.name: float(known(_as_needed(known.tasks, prediction), target)) for known in metrics_for(dataset.task)
    }
    if dataset.group is None:
        return {"metrics": values}
    decides = worst_group(find_metric(metric, dataset.task))
    each = decides.by_group(_as_needed(decides.tasks, prediction), target, dataset.group[rows])
    values[decides.name] = decides.worst_of(each.values())
    return {"metrics": values, "groups": [each.get(group) for group in range(len(dataset.group_names))]}


def _as_needed(tasks: tuple[str, ...], prediction: np.ndarray) -> np.ndarray:
    """The probability of class 1 for metrics that are of two classes only."""
    return prediction[:, 1] if tasks == ("binary",) else prediction


def _bins(probabilities: np.ndarray, target: np.ndarray) -> list[tuple[float, float, int]]:
    """Sums over each bin, so that replicas add up: confidence, rows right, rows."""
    bins = reliability_bins(probabilities, target)
    return [
        (float(confidence * count), float(right * count), int(count)) if count else (0.0, 0.0, 0)
        for confidence, right, count in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
    ]


def _residuals(values: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    shown = np.linspace(0, len(target) - 1, min(PAIRS, len(target))).astype(int)
    return {
        "quantiles": [float(q) for q in np.quantile(values - target, LEVELS)],
        "pairs": [(float(target[i]), float(values[i])) for i in shown],
    }


def thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most :data:`CURVE_POINTS` points of a learning curve."""
    keep = np.unique(np.linspace(0, max(len(curve) - 1, 0), min(CURVE_POINTS, len(curve))).astype(int))
    return [(int(curve[i][0]), float(curve[i][1])) for i in keep]
