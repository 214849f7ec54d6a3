import numpy as np
import pytest

from lossworks.metrics import METRICS, find_metric, worst_group


def test_only_errors_are_better_when_smaller():
    assert {name for name, m in METRICS.items() if not m.higher_is_better} == {
        *("log_loss", "ece", "rmse", "mae", "poisson_deviance"),
    }


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ValueError, match=r"metric must be one of .*, got 'balanced_acuracy'; did you mean 'balanced_accuracy'\?"
    ):
        find_metric("balanced_acuracy")
    with pytest.raises(ValueError, match="metric must be one of 'rmse', 'mae', got 'accuracy'"):
        find_metric("accuracy", [METRICS["rmse"], METRICS["mae"]])
    with pytest.raises(TypeError, match=r"among\[1\] must be a Metric, got str"):
        find_metric("rmse", [METRICS["rmse"], "mae"])


def test_the_worst_group_of_a_metric():
    metric = find_metric("worst_group_accuracy")
    assert metric == worst_group(METRICS["accuracy"]) == worst_group(metric)
    assert metric.of_groups
    probabilities, target = np.array([0.9, 0.2, 0.7, 0.6, 0.1]), np.array([1, 0, 0, 1, 0])
    each = metric.by_group(np.stack([1 - probabilities, probabilities], 1), target, np.array([4, 4, 7, 7, 4]))
    assert metric.worst_of(each.values()) == min(each[4], each[7]) == 0.5
    errors = find_metric("worst_group_mae")
    each = errors.by_group(np.array([1.0, 2.0, 5.0]), np.zeros(3), np.array([0, 0, 1]))
    assert errors.worst_of(each.values()) == each[1] == 5.0
    with pytest.raises(ValueError, match=r"metric must be one of .*, got 'acuracy'"):
        find_metric("worst_group_acuracy")
