"""Metrics: the numbers that are reported about predictions, on numpy arrays or tensors.

:mod:`lossworks.metrics.stacked` has the same numbers for many models at once, on raw outputs.
"""

from lossworks.metrics.classification import (
    ReliabilityBins,
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    expected_calibration_error,
    log_loss,
    macro_f1,
    per_class_recall,
    reliability_bins,
    tail_class_accuracy,
)
from lossworks.metrics.registry import METRICS, Metric, find_metric, worst_group
from lossworks.metrics.regression import mae, poisson_deviance, r2, rmse

__all__ = [
    "METRICS",
    "Metric",
    "ReliabilityBins",
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "expected_calibration_error",
    "find_metric",
    "log_loss",
    "macro_f1",
    "mae",
    "per_class_recall",
    "poisson_deviance",
    "r2",
    "reliability_bins",
    "rmse",
    "tail_class_accuracy",
    "worst_group",
]
