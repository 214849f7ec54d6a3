"""The metrics against scikit-learn and torchmetrics, and what they say of bad input."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional.classification import multiclass_calibration_error

from lossworks.metrics import (
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


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(5) / 2, 300), rng.choice(5, 300, p=[0.5, 0.3, 0.15, 0.05, 0])


@pytest.fixture
def tied():
    """Two classes, few distinct scores."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 8, 200) / 8, rng.integers(0, 2, 200)


def test_answers_are_scored_as_sklearn_scores_them(many):
    p, y = many
    answers = p.argmax(axis=1)
    assert accuracy(p, y) == reference.accuracy_score(y, answers)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced_accuracy(p, y) == pytest.approx(reference.balanced_accuracy_score(y, answers))
    assert macro_f1(p, y) == pytest.approx(reference.f1_score(y, answers, average="macro"))
    assert log_loss(p, y) == pytest.approx(reference.log_loss(y, p, labels=range(5)))


def test_a_class_that_is_neither_there_nor_predicted_does_not_count_in_f1():
    p = np.eye(3)[[0, 1, 1, 0]]
    assert macro_f1(p, np.array([0, 1, 0, 0])) == pytest.approx(
        reference.f1_score([0, 1, 0, 0], [0, 1, 1, 0], average="macro")
    )


def test_recall_of_a_class_without_rows_is_nan_and_balanced_accuracy_leaves_it_out(many):
    p, y = many
    recall = per_class_recall(p, y)
    assert np.isnan(recall[4])
    assert recall[:4] == pytest.approx(reference.recall_score(y, p.argmax(axis=1), average=None, labels=range(4)))
    assert balanced_accuracy(p, y) == pytest.approx(recall[:4].mean())


def test_ranking_of_two_classes_equals_sklearn_with_ties(tied):
    s, y = tied
    assert auroc(s, y) == pytest.approx(reference.roc_auc_score(y, s), abs=1e-12)
    assert average_precision(s, y) == pytest.approx(reference.average_precision_score(y, s), abs=1e-12)


def test_auroc_is_the_share_of_pairs_in_order(tied):
    s, y = tied
    difference = s[y == 1][:, None] - s[y == 0][None]
    assert auroc(s, y) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean(), abs=1e-12)


def test_one_class_only_leaves_the_ranking_undefined():
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.array([1, 1])))
    assert np.isnan(average_precision(np.array([0.1, 0.2]), np.array([0, 0])))
    assert average_precision(np.array([0.1, 0.2]), np.array([1, 1])) == 1


def test_calibration_error_equals_torchmetrics(many):
    p, y = many
    wanted = multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=5, n_bins=15, norm="l1")
    assert expected_calibration_error(p, y) == pytest.approx(float(wanted), abs=1e-6)


def test_calibration_error_of_one_column_and_of_two_are_one(tied):
    p, y = tied
    assert expected_calibration_error(p, y) == expected_calibration_error(np.stack([1 - p, p], axis=1), y)


def test_calibration_error_vanishes_when_confidence_is_the_frequency():
    p = np.repeat([0.6, 0.8, 1.0], [10, 10, 5])
    y = np.concatenate([np.arange(10) < 6, np.arange(10) < 8, np.ones(5)]).astype(int)
    assert expected_calibration_error(p, y) == pytest.approx(0, abs=1e-12)


def test_bins_are_open_below_and_closed_above():
    found = reliability_bins(np.array([0.75, 0.7501, 1.0]), np.array([1, 0, 0]), bins=4)
    assert found.count.tolist() == [0, 0, 1, 2]
    assert found.confidence[2:] == pytest.approx([0.75, 0.87505])
    assert found.accuracy[2:].tolist() == [1, 0]
    assert np.isnan(found.accuracy[:2]).all()


def test_certain_mistakes_cost_a_finite_log_loss():
    assert 30 < log_loss(np.array([1.0]), np.array([0])) < 40


def test_tensors_and_arrays_give_the_same(many):
    p, y = many
    tensor = torch.tensor(p, requires_grad=True)
    for metric in (accuracy, balanced_accuracy, macro_f1, log_loss, expected_calibration_error):
        assert metric(tensor, torch.tensor(y)) == metric(p, y)
    assert accuracy(torch.tensor(p).bfloat16(), torch.tensor(y)) == pytest.approx(accuracy(p, y), abs=0.03)


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        (np.full((3, 2), 0.5), np.zeros(4, int), r"probabilities must have shape \(4,\) or \(4, C\), got \(3, 2\)"),
        (np.full((3, 2), 0.5), np.array([0, 2, 1]), r"target must be in \[0, 2\), got 2 in row 1"),
        (np.full((3, 2), 0.5), np.array([0, -1, 1]), r"target must be classes >= 0, got -1 in row 1"),
        (np.full((2, 2), 0.7), np.zeros(2, int), r"probabilities must sum to 1 in each row, got 1.4 in row 0"),
        (np.array([3.0, -1.0]), np.zeros(2, int), r"probabilities must be in \[0, 1\], got 3: are these logits"),
        (np.array([np.nan, 0.1]), np.zeros(2, int), r"probabilities must have no NaN, got 1 of 2"),
        (np.zeros(0), np.zeros(0, int), r"target must have shape \(n,\) with n >= 1"),
    ],
)
def test_bad_input_is_named(p, y, message):
    with pytest.raises(ValueError, match=message):
        log_loss(p, y)


def test_what_is_no_number_is_named():
    with pytest.raises(TypeError, match="target must be whole numbers, one class a row, got float64"):
        accuracy(np.array([0.1, 0.2]), np.array([0.5, 1.0]))
    with pytest.raises(TypeError, match="probabilities must be an array of numbers, got list"):
        accuracy(["a", "b"], np.array([0, 1]))
    with pytest.raises(ValueError, match=r"scores must have shape \(2,\) or \(2, 2\), got \(2, 3\)"):
        auroc(np.ones((2, 3)), np.array([0, 1]))
    with pytest.raises(ValueError, match="target must be 0 or 1, got 2 in row 1"):
        auroc(np.ones(2), np.array([0, 2]))


def test_tail_class_accuracy_is_the_mean_of_the_worst_classes():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 7, 200)
    correct = rng.random(200) < 0.2 + 0.1 * target
    each = sorted(correct[target == k].mean() for k in range(7))
    assert tail_class_accuracy(correct, target, 0.3) == pytest.approx(np.mean(each[:3]))
    assert tail_class_accuracy(correct, target, 1.0) == pytest.approx(np.mean(each))
    assert tail_class_accuracy(correct, target, 0.01) == pytest.approx(each[0])
    for bad, name in (((correct[1:], target), "one shape"), ((correct, target, 0.0), "fraction")):
        with pytest.raises(ValueError, match=name):
            tail_class_accuracy(*bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", [log_loss, expected_calibration_error, accuracy, macro_f1])
def test_probabilities_in_half_precision_are_taken_as_they_are_rounded(metric, dtype, generator):
    """Thousands of rows, whose sums are off by rounding; the counts and sums themselves are not rounded."""
    p = torch.randn(4000, 5, generator=generator).softmax(dim=1).to(dtype)
    y = torch.randint(5, (4000,), generator=generator)
    exact = p.double() / p.double().sum(dim=1, keepdim=True) if metric is not log_loss else p.double()
    wanted = metric(exact, y) if metric is not log_loss else -float(exact.gather(1, y[:, None]).log().mean())
    assert metric(p, y) == pytest.approx(wanted, rel=1e-2 if metric is expected_calibration_error else 1e-9)
