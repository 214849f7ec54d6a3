import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from lossworks.layers import WeightCompander, add_weight_compander


@pytest.fixture
def weight(generator):
    return 2 * torch.randn(7, 5, dtype=torch.float64, generator=generator)


def test_is_the_integral_of_its_slope(weight):
    from scipy.integrate import quad

    a, b = 0.7, 0.3
    wanted = [[quad(lambda v: a * b / (b**2 + v**2), 0, float(v))[0] for v in row] for row in weight]
    assert_close(WeightCompander(a, b)(weight), torch.tensor(wanted, dtype=torch.float64), atol=1e-7, rtol=0)


def test_gradient_is_that_of_the_weight_times_the_slope(weight):
    a, b = 0.7, 0.3
    leaf = weight.clone().requires_grad_()
    price = torch.linspace(-1, 1, weight.numel(), dtype=torch.float64).view_as(weight)
    (price * WeightCompander(a, b)(leaf).sin()).sum().backward()
    at = a * torch.from_numpy(np.arctan(weight.numpy() / b))
    assert_close(leaf.grad, price * at.cos() * a * b / (b**2 + weight**2))


def test_is_bounded_odd_and_increasing():
    compander = WeightCompander(0.5, 0.2)
    v = torch.linspace(-1e4, 1e4, 4001, dtype=torch.float64)
    w = compander(v)
    assert w.abs().max() < 0.5 * math.pi / 2
    assert_close(w, -w.flip(0))
    assert w[2000] == 0
    assert (w.diff() > 0).all()


def test_a_wide_curve_is_the_identity(weight):
    c = 50.0
    assert ((WeightCompander(c, c)(weight) - weight).abs() <= weight.abs() ** 3 / (3 * c**2)).all()


def test_a_steep_curve_moves_small_weights_away_from_zero_and_large_ones_inwards():
    compander = WeightCompander(1.0, 0.5)
    small, large = torch.tensor([1e-3, 0.1, 0.5]), torch.tensor([2.0, 5.0])
    assert (compander(small) > small).all()
    assert (compander(large) < large).all()


def test_inverse_keeps_weights_and_cuts_off_at_the_bound(weight):
    compander = WeightCompander(0.7, 0.3)
    limit = 0.99 * 0.7 * math.pi / 2
    assert_close(compander(compander.right_inverse(weight)), weight.clamp(-limit, limit))


def test_a_model_keeps_its_outputs_and_is_bounded_from_then_on(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=generator)
    before, bounds = model(x), [1.5 * float(model[n].weight.detach().abs().max()) for n in (0, 3)]
    added = add_weight_compander(model)
    assert_close(model(x), before)
    assert [compander.a * math.pi / 2 for compander in added] == pytest.approx(bounds)
    assert all(compander.a == compander.b for compander in added)
    assert not parametrize.is_parametrized(model[1])
    assert not hasattr(model[3].parametrizations, "bias")
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    for _ in range(5):
        optimizer.zero_grad()
        model(x)[:, 0].sum().backward()
        optimizer.step()
    assert all(model[n].weight.abs().max() < bound for n, bound in zip((0, 3), bounds, strict=True)), (
        "a weight left its bound"
    )
    assert model[3].weight.abs().max() > 0.9 * bounds[1]


def test_a_and_b_stay_positive_while_they_are_learned(weight):
    compander = WeightCompander(0.7, 0.3, learnable=True)
    assert_close(compander(weight), WeightCompander(0.7, 0.3)(weight))
    optimizer = torch.optim.SGD(compander.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        compander(weight).abs().sum().backward()
        optimizer.step()
    a, b = compander.log_factors.exp() * torch.tensor([0.7, 0.3])
    assert 0 < a < 0.7
    assert b > 0.3


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="a must be finite and > 0"):
        WeightCompander(0.0)
    with pytest.raises(ValueError, match="b must be finite and > 0"):
        add_weight_compander(nn.Linear(2, 2), b=-1.0)
    with pytest.raises(TypeError, match="weight must be floating-point"):
        WeightCompander()(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="module must have a linear layer or a convolution"):
        add_weight_compander(nn.ReLU())
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    with pytest.raises(ValueError, match="not all 0 unless a is given"):
        add_weight_compander(zero)
    layer = nn.Linear(2, 2)
    add_weight_compander(layer)
    with pytest.raises(ValueError, match="must have plain weights"):
        add_weight_compander(layer)
