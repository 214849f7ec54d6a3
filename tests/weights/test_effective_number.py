from fractions import Fraction

import pytest
import torch
from torch.testing import assert_close

from lossworks.weights import ClassBalanced, effective_number_weights

COUNTS = torch.tensor([900.0, 80.0, 7.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("beta", [Fraction(1, 2), Fraction(99, 100), Fraction(9999, 10000)])
def test_equals_exact_arithmetic(beta):
    raw = [(1 - beta) / (1 - beta ** int(count)) for count in COUNTS]
    wanted = [float(4 * weight / sum(raw)) for weight in raw]
    assert_close(effective_number_weights(COUNTS, float(beta)), torch.tensor(wanted, dtype=torch.float64))


def test_its_limits_are_uniform_and_inverse_frequency():
    assert_close(effective_number_weights(COUNTS, 0.0), torch.ones(4, dtype=torch.float64))
    inverse = 4 / COUNTS / (1 / COUNTS).sum()
    assert_close(effective_number_weights(COUNTS, 1.0), inverse)
    assert_close(effective_number_weights(COUNTS, 1 - 1e-13), inverse, atol=0, rtol=1e-9)


def test_its_mean_is_1_over_classes_or_rows_and_a_class_without_rows_has_none():
    counts = torch.tensor([6.0, 0.0, 2.0])
    weights = effective_number_weights(counts, 0.9)
    assert_close(weights.sum(), torch.tensor(2.0))
    assert weights[1] == 0
    over_rows = effective_number_weights(counts, 0.9, normalize="rows")
    assert_close((counts * over_rows).sum(), counts.sum())


def test_the_weighting_has_the_same_weights():
    for method, beta in (("inverse", 1.0), ("effective", 0.97)):
        found = ClassBalanced(COUNTS, method=method, beta=0.97).class_weights()
        assert_close(found, effective_number_weights(COUNTS, beta, normalize="rows"))


def test_a_tensor_beta_has_a_finite_gradient():
    for value in (0.5, 0.999, 1.0):
        beta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        effective_number_weights(COUNTS, beta)[0].backward()
        assert beta.grad.isfinite()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got 2"):
        effective_number_weights(COUNTS, 2.0)
    with pytest.raises(ValueError, match="normalize must be one of 'classes', 'rows'"):
        effective_number_weights(COUNTS, normalize="sum")
    with pytest.raises(ValueError, match="counts must be >= 0"):
        effective_number_weights(-COUNTS)


def test_the_slopes_at_the_ends_are_those_beside_them():
    counts = torch.tensor([1.0, 7.0, 40.0], dtype=torch.float64)
    for end, beside in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        slopes = []
        for beta in (end, beside):
            rate = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
            effective_number_weights(counts, rate)[1].backward()
            slopes.append(rate.grad)
        assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-6)


def test_a_count_has_a_finite_slope_at_both_ends():
    counts = torch.tensor([5.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(effective_number_weights(counts, 1.0)[0], counts)
    assert_close(slope, torch.tensor([-6 / 64, 0, 10 / 64], dtype=torch.float64))  # 2 (1/5) / (1/5 + 1/3) = 6 / (3 + 5)
    (slope,) = torch.autograd.grad(effective_number_weights(counts, 0.0)[0], counts)
    assert_close(slope, torch.zeros(3, dtype=torch.float64))


def test_counts_in_half_precision_are_summed_in_single():
    counts = torch.tensor([60000.0, 30000.0])
    for beta in (0.0, 0.9999, 1.0):
        found = effective_number_weights(counts.half(), beta, normalize="rows")
        assert_close(found, effective_number_weights(counts.half().float(), beta, normalize="rows"))


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="counts"):
        effective_number_weights(torch.zeros(0))
