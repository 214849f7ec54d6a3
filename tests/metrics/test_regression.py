"""Real-valued metrics against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from lossworks.metrics import mae, r2, rmse


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
