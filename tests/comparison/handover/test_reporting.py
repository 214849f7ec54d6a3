"""The numbers of the report that no table of the result has."""

from types import SimpleNamespace

from lossworks.comparison.handover.reporting import _differences


def replica(fold, repeat, score):
    return {"fold": fold, "repeat": repeat, "metrics": {"accuracy": score, "log_loss": 9.0}}


def test_a_difference_is_from_the_references_model_of_the_same_fold_and_repeat():
    plan = SimpleNamespace(metric=SimpleNamespace(name="accuracy"), reference="base")
    scores = {
        "base": [replica(0, 0, 0.5), replica(1, 0, 0.25), replica(0, 1, 0.75)],
        "other": [replica(1, 0, 0.75), replica(0, 0, 0.25), replica(1, 1, 1.0)],
    }
    found = {"other": [{"fold": 1, "repeat": 0, "difference": 0.5}, {"fold": 0, "repeat": 0, "difference": -0.25}]}
    assert _differences(scores, plan) == found
    assert _differences({"other": scores["other"]}, plan) == {"other": []}
