import numpy as np

from lossworks.comparison.models.boosting import boosted_classes, boosted_values


def test_classes_nearly_as_many_as_rows_are_fitted_without_a_warning():
    rows = np.arange(40)
    found = boosted_classes(rows[:, None].astype(float), rows % 25, rows[:30], rows[30:], 25, seed=0)
    assert found.shape == (10, 25)
    assert bool((found.exp().sum(dim=1) - 1).abs().max() < 1e-6)


def test_expected_counts_are_positive():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = rng.poisson(np.exp(x[:, 0] - 1)).astype(float)
    rows = np.arange(200)
    assert bool((boosted_values(x, y, rows[:150], rows[150:], 0) < 0).any())
    assert bool((boosted_values(x, y, rows[:150], rows[150:], 0, loss="poisson") > 0).all())
