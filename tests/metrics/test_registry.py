import pytest

from lossworks.metrics import METRICS, find_metric, metrics_for


def test_every_task_has_its_metrics():
    assert [m.name for m in metrics_for("multiclass")] == [
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "log_loss",
        "ece",
    ]
    assert {m.name for m in metrics_for("binary")} - {m.name for m in metrics_for("multiclass")} == {
        "auroc",
        "average_precision",
    }
    assert {m.name for m in metrics_for("real")} == {"rmse", "mae", "r2"}


def test_only_errors_are_better_when_smaller():
    assert {name for name, m in METRICS.items() if not m.higher_is_better} == {"log_loss", "ece", "rmse", "mae"}


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ValueError, match=r"metric must be one of .*, got 'balanced_acuracy'; did you mean 'balanced_accuracy'\?"
    ):
        find_metric("balanced_acuracy", "binary")
    with pytest.raises(ValueError, match="metric must be one of 'rmse', 'mae', 'r2', got 'accuracy'"):
        find_metric("accuracy", "real")
