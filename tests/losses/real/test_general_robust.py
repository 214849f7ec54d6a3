import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from torch.testing import assert_close

from lossworks.losses import GeneralRobustLoss
from lossworks.losses.real.general_robust import log_partition


def rho(x, alpha):
    """The definition, case by case, in numpy."""
    if alpha == 2:
        return x**2 / 2
    if alpha == 0:
        return np.log1p(x**2 / 2)
    if alpha == -math.inf:
        return -np.expm1(-(x**2) / 2)
    b = abs(alpha - 2)
    return b / alpha * ((x**2 / b + 1) ** (alpha / 2) - 1)


SHAPES = [-math.inf, -1e3, -2.0, -0.5, 0.0, 0.3, 1.0, 1.7, 1.99999, 2.0]


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("alpha", SHAPES)
def test_is_the_definition_with_its_limits(alpha, as_tensor):
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)
    shape = torch.tensor(alpha, dtype=torch.float64) if as_tensor else alpha
    losses = GeneralRobustLoss(shape, 0.5, reduction="none")(x, torch.zeros_like(x))
    assert_close(losses, torch.from_numpy(rho(x.numpy() / 0.5, alpha)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7, 1e-9])
def test_runs_into_its_limits_smoothly(alpha, step):
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    near, at = (GeneralRobustLoss(a, reduction="none")(x, torch.zeros_like(x)) for a in (abs(alpha - step), alpha))
    assert_close(near, at, rtol=0, atol=100 * step)


@pytest.mark.parametrize("alpha", SHAPES)
def test_float32_agrees_with_float64(alpha):
    x = torch.tensor([1e-4, 0.1, 1.0, 7.0, 1e3, 1e4])
    loss = GeneralRobustLoss(alpha, reduction="none")
    assert_close(loss(x, torch.zeros(6)).double(), loss(x.double(), torch.zeros(6).double()), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("alpha", [-2.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 1.9])
def test_derivative_by_the_shape_is_that_of_the_definition(alpha):
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    shape = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    loss = GeneralRobustLoss(reduction="sum")
    loss.alpha = shape
    loss(x, torch.zeros_like(x)).backward()
    above, below = (rho(x.numpy(), alpha + h).sum() for h in (1e-4, -1e-4))
    assert_close(shape.grad.item(), (above - below) / 2e-4, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 1.0, 1.5, 1.99, 2.0])
def test_partition_is_the_integral(alpha):
    half, _ = quad(lambda x: math.exp(-rho(x, alpha)), 0, math.inf, epsabs=1e-13, epsrel=1e-12, limit=500)
    ours = log_partition(torch.tensor(alpha, dtype=torch.float64)).item()
    assert_close(ours, math.log(2 * half), rtol=0, atol=1e-10)
    assert_close(log_partition(torch.tensor(alpha)).item(), ours, rtol=0, atol=1e-5)


def test_partition_has_its_closed_forms():
    ends = [log_partition(torch.tensor(a, dtype=torch.float64)).exp().item() for a in (0.0, 2.0)]
    assert_close(ends, [math.pi * math.sqrt(2), math.sqrt(2 * math.pi)], rtol=1e-10, atol=0)


def test_partitions_derivative_is_right():
    shape = torch.tensor([0.2, 1.0, 1.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: torch.stack([log_partition(one) for one in a]), shape)


def test_learning_form_is_a_normalised_density():
    loss = GeneralRobustLoss(0.8, 0.6, learn=True, reduction="none").double()
    x = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    density = torch.exp(-loss(x, torch.zeros_like(x)))
    assert_close(torch.trapezoid(density, x).item(), 1.0, rtol=0, atol=1e-6)


def test_learned_shape_and_scale_are_the_maximum_likelihood_ones(generator):
    normal = torch.randn(2000, generator=generator, dtype=torch.float64)
    residuals = normal / torch.randn(2000, 2, generator=generator, dtype=torch.float64).square().mean(1).sqrt()
    loss = GeneralRobustLoss(1.0, 1.0, learn=True).double()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(residuals, torch.zeros_like(residuals))
        value.backward()
        return value

    optimizer.step(closure)
    shape, scale = (value.item() for value in loss.shape_and_scale())

    def likelihood(parameters):
        alpha, c = parameters
        half, _ = quad(lambda x: math.exp(-rho(x, alpha)), 0, math.inf)
        return rho(residuals.numpy() / c, alpha).mean() + math.log(2 * half * c)

    best = minimize(likelihood, [0.5, 1.0], bounds=[(0.01, 1.99), (0.1, 3)]).x
    assert_close([shape, scale], list(best), rtol=0, atol=2e-3)
    assert 0 < shape < 1


def test_without_learning_there_is_nothing_to_train():
    assert not list(GeneralRobustLoss().parameters())
    assert {name for name, _ in GeneralRobustLoss(learn=True).named_parameters()} == {"alpha_logit", "log_scale"}


@pytest.mark.parametrize(("alpha", "learn"), [(2.1, False), (math.nan, False), (0.0, True), (2.0, True), (-1.0, True)])
def test_shape_outside_its_range_is_refused(alpha, learn):
    with pytest.raises(ValueError, match="alpha must be in"):
        GeneralRobustLoss(alpha, learn=learn)


@pytest.mark.parametrize(("alpha", "scale"), [(0.3, 1.0), (1.0, 0.25), (1.9, 4.0)])
def test_a_learned_shape_and_scale_start_where_they_are_put(alpha, scale):
    found = GeneralRobustLoss(alpha, scale, learn=True).shape_and_scale()
    assert_close(found, (torch.tensor(alpha), torch.tensor(scale)))
