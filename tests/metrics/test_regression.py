"""Real-valued metrics against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from lossworks.metrics import mae, poisson_deviance, r2, rmse


def test_equal_sklearn():
    rng = np.random.default_rng(0)
    y = rng.standard_t(2, 100)
    predicted = y + rng.normal(size=100)
    assert rmse(predicted, y) == pytest.approx(reference.root_mean_squared_error(y, predicted))
    assert mae(predicted, y) == pytest.approx(reference.mean_absolute_error(y, predicted))
    assert r2(torch.tensor(predicted), torch.tensor(y)) == pytest.approx(reference.r2_score(y, predicted))


@pytest.mark.parametrize("predicted", [[2.0, 2.0], [2.0, 3.0]])
def test_a_target_that_does_not_vary(predicted):
    assert r2(np.array(predicted), np.array([2.0, 2.0])) == reference.r2_score([2.0, 2.0], predicted)


def test_shapes_must_match():
    with pytest.raises(
        ValueError, match=r"values and target must have one shape \(n,\), n >= 1, got \(2, 1\) and \(2,\)"
    ):
        rmse(np.zeros((2, 1)), np.zeros(2))


def test_poisson_deviance_equals_sklearn_s():
    rng = np.random.default_rng(1)
    expected = rng.gamma(2.0, 2.0, 200)
    counts = rng.poisson(expected)
    assert (counts == 0).any()
    assert poisson_deviance(expected, counts) == pytest.approx(reference.mean_poisson_deviance(counts, expected))
    assert poisson_deviance(counts[counts > 0], counts[counts > 0]) == pytest.approx(0, abs=1e-12)
    assert poisson_deviance(np.array([np.inf, 1.0]), np.array([1.0, 1.0])) == np.inf


def test_poisson_deviance_refuses_what_is_no_count_or_no_expectation():
    with pytest.raises(ValueError, match="target must be counts >= 0, got -1 in row 1"):
        poisson_deviance(np.ones(2), np.array([0.0, -1.0]))
    with pytest.raises(ValueError, match="values must be expected counts > 0, got 0 in row 0"):
        poisson_deviance(np.zeros(2), np.ones(2))
