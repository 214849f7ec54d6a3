"""Scores of many models at once equal the plain metrics of each."""

import re

import numpy as np
import pytest
import torch

from lossworks import metrics
from lossworks.metrics import METRICS, stacked


@pytest.fixture
def ragged(generator):
    """Four models whose rows end at different lengths; padding holds what must not be read."""
    lengths = torch.tensor([40, 37, 12, 25])
    mask = torch.arange(40) < lengths[:, None]
    return mask, generator


def spoil(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(
        mask[..., None] if tensor.ndim == 3 else mask, tensor, -100 if not tensor.is_floating_point() else torch.nan
    )


def class_batch(ragged, columns: int):
    mask, generator = ragged
    outputs = (torch.randn(4, 40, columns, generator=generator) * 8).round() / 4
    return spoil(outputs, mask), spoil(torch.randint(max(columns, 2), (4, 40), generator=generator), mask), mask


def probabilities(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[:, 0].sigmoid() if outputs.shape[1] == 1 else outputs.softmax(dim=1)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_answers_are_scored_as_by_the_plain_metric(ragged, name, columns):
    outputs, target, mask = class_batch(ragged, columns)
    for model, score in enumerate(METRICS[name].score(outputs, target, mask).tolist()):
        rows = mask[model]
        assert score == pytest.approx(METRICS[name](probabilities(outputs[model, rows]), target[model, rows]), abs=1e-6)


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
@pytest.mark.parametrize("columns", [1, 2])
def test_two_classes_are_ranked_as_by_the_plain_metric(ragged, name, columns):
    outputs, target, mask = class_batch(ragged, columns)
    for model, score in enumerate(METRICS[name].score(outputs, target, mask).tolist()):
        rows = mask[model]
        plain = METRICS[name](outputs[model, rows].squeeze(1), target[model, rows])
        assert score == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_log_loss_is_that_of_the_best_temperature(ragged, columns):
    outputs, target, mask = class_batch(ragged, columns)
    for model, score in enumerate(stacked.log_loss(outputs, target, mask).tolist()):
        logits, y = outputs[model, mask[model]].double(), target[model, mask[model]]
        best = min(metrics.log_loss(probabilities(logits / t), y) for t in stacked.TEMPERATURES)
        assert score == pytest.approx(-best, abs=1e-5)


def test_log_loss_does_not_care_for_the_scale_of_the_logits(ragged):
    outputs, _, mask = class_batch(ragged, 5)
    target = torch.where(mask, outputs.argmax(dim=2), -100)
    target[:, ::3] = 0
    torch.testing.assert_close(stacked.log_loss(outputs * 2, target, mask), stacked.log_loss(outputs, target, mask))


@pytest.mark.parametrize(("name", "sign"), [("rmse", -1), ("mae", -1), ("r2", 1)])
def test_values_are_scored_as_by_the_plain_metric(ragged, name, sign):
    mask, generator = ragged
    outputs = spoil(torch.randn(4, 40, 1, generator=generator), mask)
    target = spoil(torch.randn(4, 40, generator=generator), mask)
    for model, score in enumerate(METRICS[name].score(outputs, target, mask).tolist()):
        rows = mask[model]
        assert score == pytest.approx(sign * METRICS[name](outputs[model, rows, 0], target[model, rows]), abs=1e-5)


def test_expected_counts_are_scored_as_by_the_plain_metric(ragged):
    mask, generator = ragged
    expected = torch.rand(4, 40, 1, generator=generator) * 5 + 0.01
    counts = torch.poisson(expected[..., 0], generator=generator)
    outputs, target = spoil(expected, mask), spoil(counts, mask)
    for model, score in enumerate(stacked.poisson_deviance(outputs, target, mask).tolist()):
        rows = mask[model]
        plain = METRICS["poisson_deviance"](expected[model, rows, 0], counts[model, rows])
        assert score == pytest.approx(-plain, rel=1e-5)
    below = stacked.poisson_deviance(torch.full((1, 2, 1), -1.0), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert -torch.inf < below.item() < -100


@pytest.mark.parametrize("name", list(METRICS))
def test_a_model_that_diverged_is_worst(ragged, name):
    mask, generator = ragged
    outputs = torch.randn(4, 40, 1, generator=generator)
    outputs[1, 3], outputs[2, 5] = torch.nan, torch.inf
    target = torch.randint(2, (4, 40), generator=generator)
    scores = METRICS[name].score(
        outputs, target.float() if not METRICS[name].by_class and name != "accuracy" else target, mask
    )
    assert scores.isneginf().tolist() == [False, True, True, False]


def test_undefined_rankings_do_not_stop_a_training():
    outputs, mask = torch.randn(1, 4, 1), torch.ones(1, 4, dtype=torch.bool)
    assert stacked.auroc(outputs, torch.ones(1, 4, dtype=torch.int64), mask).tolist() == [0.5]
    assert stacked.average_precision(outputs, torch.zeros(1, 4, dtype=torch.int64), mask).tolist() == [0]
    assert np.isfinite(stacked.r2(outputs, torch.ones(1, 4), mask).item())


@pytest.mark.parametrize("score", [stacked.log_loss, stacked.macro_f1])
def test_classes_that_the_outputs_do_not_have_are_refused(score):
    with pytest.raises(ValueError, match=r"target must hold classes in \[0, 2\), got 0 to 2"):
        score(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(("name", "target", "mask"), [("target", (1, 4), (1, 3)), ("mask", (1, 3), (3,))])
def test_a_shape_that_is_not_the_outputs_is_named(name, target, mask):
    got = {"target": target, "mask": mask}[name]
    with pytest.raises(ValueError, match=re.escape(f"{name} must have shape (1, 3), got {got}")):
        stacked.log_loss(torch.zeros(1, 3, 2), torch.zeros(target, dtype=torch.int64), torch.ones(mask).bool())


def test_scores_of_two_classes_refuse_more():
    with pytest.raises(ValueError, match="outputs must have 1 or 2 columns for this score, got 3"):
        stacked.auroc(torch.zeros(1, 4, 3), torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="outputs must have one column, the predicted value, got 3"):
        stacked.rmse(torch.zeros(1, 4, 3), torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool))
