"""p-values of several arms: between one test and Holm's method, by the joint distribution."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from lossworks.verdict import holm, step_down


def test_independent_arms_are_adjusted_as_by_sidak():
    p = np.array([0.03, 0.01, 0.2])
    found = step_down(p, np.eye(3))
    assert_allclose(found[1], 1 - (1 - 0.01) ** 3, atol=0.003)
    assert_allclose(found[0], 1 - (1 - 0.03) ** 2, atol=0.003)
    assert_allclose(found[2], 0.2)


def test_two_correlated_arms_agree_with_the_bivariate_normal():
    p, correlation = np.array([0.02, 0.3]), np.array([[1, 0.8], [0.8, 1]])
    law = stats.multivariate_normal(np.zeros(2), correlation)
    bound = stats.norm.isf(0.02 / 2)
    corners = [law.cdf(np.array([a, b]) * bound) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    within = corners[0] - corners[1] - corners[2] + corners[3]
    assert_allclose(step_down(p, correlation)[0], 1 - within, atol=0.003)


def test_one_arm_under_many_names_is_adjusted_for_one():
    assert_allclose(step_down(np.full(6, 0.03), np.ones((6, 6))), 0.03, atol=0.003)


def test_lies_between_the_p_value_and_holms_in_any_case():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(5) ** 4
        root = rng.standard_normal((5, 5))
        whole = root @ root.T
        size = np.sqrt(whole.diagonal())
        found = step_down(p, whole / np.outer(size, size))
        assert (found >= p).all()
        assert (found <= np.array(holm(p.tolist())) + 1e-12).all()
        order = np.argsort(p)
        assert (np.diff(found[order]) >= 0).all()


def test_the_order_of_the_arms_changes_nothing_that_matters():
    p, order = np.array([0.01, 0.02, 0.04]), [2, 0, 1]
    correlation = np.array([[1, 0.5, 0.1], [0.5, 1, 0.3], [0.1, 0.3, 1]])
    assert_allclose(step_down(p[order], correlation[np.ix_(order, order)]), step_down(p, correlation)[order])


def test_a_family_of_one_or_none_is_left_as_it_is():
    assert step_down([], np.zeros((0, 0))).tolist() == []
    assert step_down([0.04], [[1.0]]).tolist() == [0.04]


@pytest.mark.parametrize(
    ("p", "correlation", "message"),
    [
        ([0.1, 1.1], np.eye(2), r"p_values must be numbers in \[0, 1\]"),
        ([0.1, 0.2], np.eye(3), r"correlation must be of shape \(2, 2\)"),
        ([0.1, 0.2], 2 * np.eye(2), r"in \[-1, 1\], got .* up to 2"),
        ([0.1, float("nan")], np.eye(2), "p_values must have no NaN"),
    ],
)
def test_says_what_is_wrong(p, correlation, message):
    with pytest.raises(ValueError, match=message):
        step_down(p, correlation)
