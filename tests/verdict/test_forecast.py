"""Forecasts: they agree with what is at hand, with draws, and with the sizes that they name."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lossworks.verdict import Crossed, chance_of_decision, crossed, rows_to_decide, variance_at


def found(mean: float = 0.01, repeats: int = 2, **parts: float) -> Crossed:
    """One arm with these variances, of 500 rows in five folds."""
    parts = {"per_row": 0.05, "per_fit": 0.0004, "per_score": 0.04} | parts
    rows = (parts["per_row"] + parts["per_score"] / repeats) / 500 * 5 / 4
    models = parts["per_fit"] / (5 * repeats)
    return Crossed(
        mean=np.array([mean]),
        rows=np.array([[rows]]),
        models=np.array([[models]]),
        degrees=np.array([200.0]),
        per_row=np.array([parts["per_row"]]),
        per_fit=np.array([parts["per_fit"]]),
        per_score=np.array([parts["per_score"]]),
        units=500,
        folds=5,
        repeats=repeats,
        grain=1 / 500**2,
    )


def test_the_variance_at_what_there_is_is_the_variance():
    rng = np.random.default_rng(0)
    fold = np.stack([rng.permutation(np.arange(200) % 5) for _ in range(3)], axis=1)
    fits = 0.3 * rng.standard_normal((5, 3))[fold, np.arange(3)]
    one = crossed(rng.standard_normal((200, 1)) + fits + rng.standard_normal((200, 3)), fold)
    assert_allclose(variance_at(one, repeats=3), one.variance)
    assert (variance_at(one, repeats=9) < one.variance).all()
    assert_allclose(variance_at(one, repeats=3, units=800)[0], one.rows[0, 0] / 4 + one.models[0, 0])


def test_without_further_repeats_the_chance_is_what_is_there():
    scale = found().variance[0] ** 0.5
    assert chance_of_decision(found(2.1 * scale), repeats=2, rope=0.001) == 1
    assert chance_of_decision(found(1.9 * scale), repeats=2, rope=0.001) == 0
    assert chance_of_decision(found(0.0), repeats=2, rope=10 * scale) == 1  # equal


def test_the_chance_is_that_of_draws():
    """Draw truths, rows, fits and rests as supposed, keep what looks as observed, and count what is decided later."""
    rng, sets, rope = np.random.default_rng(1), 2_000_000, 0.01
    one = found(0.02)
    truth = 2 * rope * rng.standard_normal(sets) + rng.standard_normal(sets) * (0.05 / 500) ** 0.5
    varying = (0.04 / 500 + 0.0004 / 5) ** 0.5
    early, late = truth + varying / 2**0.5 * rng.standard_normal(sets), varying * 8**-0.5 * rng.standard_normal(sets)
    kept = np.abs(early - 0.02) < 0.0005
    final = (0.2 * early + 0.8 * (truth + late))[kept]
    scale = variance_at(one, repeats=10)[0] ** 0.5
    from scipy.stats import t

    equal = np.abs(final) + t.ppf(0.95, 200) * (scale**2 + one.grain) ** 0.5 <= rope
    decided = equal | (np.abs(final) >= t.ppf(0.975, 200) * scale)
    assert kept.sum() > 5000
    assert_allclose(chance_of_decision(one, repeats=10, rope=rope)[0], decided.mean(), atol=0.02)


def test_the_rows_named_are_the_fewest_that_are_enough():
    from scipy.stats import norm, t

    one = found()
    needed = rows_to_decide(one, 0.02, repeats=10)[0]
    wanted = 0.02 / (t.ppf(0.975, 200) + norm.ppf(0.8))
    assert variance_at(one, repeats=10, units=int(needed))[0] ** 0.5 <= wanted
    assert variance_at(one, repeats=10, units=int(needed) - 1)[0] ** 0.5 > wanted
    assert rows_to_decide(one, -0.02, repeats=10) == needed
    assert rows_to_decide(found(per_fit=1.0), 0.02, repeats=2) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: variance_at(found(), repeats=0), "repeats must be >= 1"),
        (lambda: variance_at(found(), repeats=2, units=0), "units must be >= 1"),
        (lambda: chance_of_decision(found(), repeats=1, rope=0.01), "repeats must be >= 2"),
        (lambda: chance_of_decision(found(), repeats=2, rope=0.0), "rope"),
        (lambda: chance_of_decision(found(), repeats=2, rope=0.01, alpha=1.0), "alpha"),
        (lambda: rows_to_decide(found(), 0.0, repeats=2), "difference"),
        (lambda: rows_to_decide(found(), 0.01, repeats=2, alpha=0.0), "alpha"),
    ],
)
def test_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
