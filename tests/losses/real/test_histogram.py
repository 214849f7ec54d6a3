import math

import pytest
import torch
from scipy.stats import truncnorm
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from lossworks.losses import HLGaussLoss, TwoHotLoss


@pytest.fixture
def values(generator):
    return 4 * torch.rand(40, dtype=torch.float64, generator=generator) - 2


@pytest.mark.parametrize("bins", [10, 150])
@pytest.mark.parametrize("ratio", [0.3, 0.75, 2.0])
def test_hl_gauss_target_is_a_truncated_normal_binned(ratio, bins):
    values = torch.tensor([-2.0, -1.99, 0.1234, 1.5, 2.0], dtype=torch.float64)
    ours = HLGaussLoss(-2.0, 2.0, bins, ratio).target_probabilities(values)
    sigma, edges = ratio * 4 / bins, torch.linspace(-2, 2, bins + 1, dtype=torch.float64).numpy()
    for value, row in zip(values.tolist(), ours, strict=True):
        normal = truncnorm((-2 - value) / sigma, (2 - value) / sigma, loc=value, scale=sigma)
        assert_close(row, torch.from_numpy(normal.cdf(edges)).diff(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [HLGaussLoss(-2.0, 2.0, 31), TwoHotLoss(-2.0, 2.0, 31)])
def test_targets_are_distributions_even_outside_the_range(loss):
    p = loss.target_probabilities(torch.tensor([-1e30, -7.0, -2.0, 0.3, 2.0, 7.0, 1e30]))
    assert (p >= 0).all()
    assert_close(p.sum(1), torch.ones(7))
    assert_close(p[0], p[2])
    assert_close(p[6], p[4])


@pytest.mark.parametrize(("ratio", "bias"), [(0.5, 0.0024), (0.75, 6e-6), (1.0, 2e-9)])
def test_hl_gauss_mean_is_the_value_four_sigma_inside(ratio, bias):
    loss = HLGaussLoss(-10.0, 10.0, 100, ratio)
    values = torch.linspace(-8, 8, 3001, dtype=torch.float64)
    width = 0.2
    error = (loss.mean(loss.target_probabilities(values).log()) - values).abs().max() / width
    assert error < bias
    assert error > bias / 10


def test_hl_gauss_runs_from_one_hot_to_uniform(values):
    own_bin = ((values + 2) / 0.4).floor().long()
    one_hot = HLGaussLoss(-2.0, 2.0, 10, 1e-9).target_probabilities(values)
    assert_close(one_hot, torch.eye(10, dtype=torch.float64)[own_bin])
    uniform = HLGaussLoss(-2.0, 2.0, 10, 1e6).target_probabilities(values.float())
    assert_close(uniform, torch.full((40, 10), 0.1))


def test_hl_gauss_shifts_by_whole_bins():
    loss = HLGaussLoss(-5.0, 5.0, 100)
    here, there = loss.target_probabilities(torch.tensor([0.123, 0.623], dtype=torch.float64))
    assert_close(here[20:80], there[25:85], atol=1e-12, rtol=0)


def test_two_hot_mean_is_the_value_exactly(values):
    loss = TwoHotLoss(-2.0, 2.0, 17)
    p = loss.target_probabilities(values)
    assert_close(loss.mean(p.log()), values, rtol=0, atol=1e-14)
    assert ((p > 0).sum(1) <= 2).all()


def test_two_hot_on_a_grid_point_is_one_hot():
    p = TwoHotLoss(-1.0, 1.0, 5).target_probabilities(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))
    assert_close(p, torch.eye(5), rtol=0, atol=0)


def test_two_hot_with_two_points_is_binary_cross_entropy(values, generator):
    logits = torch.randn(40, 2, dtype=torch.float64, generator=generator)
    expected = binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], (values + 2) / 4)
    assert_close(TwoHotLoss(-2.0, 2.0, 2)(logits, values), expected)


@pytest.mark.parametrize("loss", [HLGaussLoss(-2.0, 2.0, 9), TwoHotLoss(-2.0, 2.0, 9)])
def test_loss_is_cross_entropy_with_its_closed_gradient(loss, values, generator):
    logits = torch.randn(40, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    p = loss.target_probabilities(values)
    value = loss(logits, values)
    assert_close(value, -(p * logits.softmax(1).log()).sum(1).mean())
    value.backward()
    assert_close(logits.grad, (logits.detach().softmax(1) - p) / 40)


@pytest.mark.parametrize("loss", [HLGaussLoss(-2.0, 2.0, 9), TwoHotLoss(-2.0, 2.0, 9)])
def test_least_loss_is_the_targets_entropy(loss, values):
    p = loss.target_probabilities(values)
    entropy = torch.special.entr(p).sum(1).mean()
    assert_close(loss(p.clamp(min=1e-300).log(), values), entropy)


def test_predicts_one_value_a_row_from_num_bins_outputs(generator):
    loss = HLGaussLoss(-2.0, 2.0, num_bins=9)
    assert loss.output_size() == 9
    assert loss.predict(torch.zeros(5, 9)).shape == (5,)
    assert_close(loss.predict(torch.zeros(5, 9)), torch.zeros(5))


def test_bounds_may_be_stacked_tensors(generator):
    lows, highs = torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 4.0])
    logits, values = torch.randn(2, 6, 7, generator=generator), torch.randn(2, 6, generator=generator)
    for make in (HLGaussLoss, TwoHotLoss):
        stacked = torch.func.vmap(lambda low, high, z, y, make=make: make(low, high, 7)(z, y))(
            lows, highs, logits, values
        )
        single = [
            make(low.item(), high.item(), 7)(z, y) for low, high, z, y in zip(lows, highs, logits, values, strict=True)
        ]
        assert_close(stacked, torch.stack(single))


def test_no_gradient_flows_into_the_target():
    values = torch.zeros(3, requires_grad=True)
    assert not HLGaussLoss(-1.0, 1.0, 5)(torch.zeros(3, 5), values).requires_grad


@pytest.mark.parametrize("make", [HLGaussLoss, TwoHotLoss])
def test_what_does_not_fit_is_named(make):
    with pytest.raises(ValueError, match="v_max must be above v_min = 2, got 2"):
        make(2.0, torch.tensor(2.0))
    with pytest.raises(ValueError, match="v_min must be finite"):
        make(-math.inf, 2.0)
    with pytest.raises(ValueError, match=r"output must have shape \(n, 9\)"):
        make(-1.0, 1.0, 9)(torch.zeros(4, 8), torch.zeros(4))
    with pytest.raises(ValueError, match=r"target must have shape \(4,\)"):
        make(-1.0, 1.0, 9)(torch.zeros(4, 9), torch.zeros(4, 1))
    with pytest.raises(TypeError, match="target must be floating-point"):
        make(-1.0, 1.0, 9)(torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64))


def test_one_bin_is_no_histogram():
    with pytest.raises(ValueError, match="num_bins must be"):
        HLGaussLoss(-2.0, 2.0, num_bins=1)
    assert HLGaussLoss(-2.0, 2.0, num_bins=2).num_bins == 2
