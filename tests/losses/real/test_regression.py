import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error
from torch.nn.functional import huber_loss
from torch.testing import assert_close

from lossworks.losses import AbsoluteLoss, HuberLoss, LogCoshLoss, PinballLoss, SquaredLoss, TukeyBiweightLoss


@pytest.fixture
def batch(generator):
    output = 3 * torch.randn(51, dtype=torch.float64, generator=generator)
    return output, torch.randn(51, dtype=torch.float64, generator=generator)


def best_constant(loss, target):
    def risk(value):
        return loss(torch.full_like(target, value), target).item()

    return minimize_scalar(risk, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x


def test_squared_and_absolute_are_sklearns(batch):
    output, target = batch
    assert_close(SquaredLoss()(output, target).item(), mean_squared_error(target, output))
    assert_close(AbsoluteLoss()(output, target).item(), mean_absolute_error(target, output))


def test_squared_fits_the_mean_and_absolute_the_median(batch):
    _, target = batch
    assert_close(best_constant(SquaredLoss(), target), target.mean().item(), atol=1e-6, rtol=0)
    assert_close(best_constant(AbsoluteLoss(), target), target.median().item(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("delta", [0.2, 1.0, 5.0])
def test_huber_is_torchs(batch, delta):
    for value in (delta, torch.tensor(delta, dtype=torch.float64)):
        assert_close(HuberLoss(value)(*batch), huber_loss(*batch, delta=delta))


def test_huber_runs_from_absolute_to_half_the_square(batch):
    assert_close(HuberLoss(1e9)(*batch), SquaredLoss()(*batch) / 2)
    assert_close(HuberLoss(1e-9)(*batch) / 1e-9, AbsoluteLoss()(*batch))


def test_log_cosh_is_its_formula_and_its_gradient_tanh(batch):
    output, target = batch
    output.requires_grad_()
    losses = LogCoshLoss(reduction="none")(output, target)
    assert_close(losses, (output - target).cosh().log())
    (gradient,) = torch.autograd.grad(losses.sum(), output)
    assert_close(gradient, (output - target).tanh())


def test_log_cosh_curvature_at_zero_is_one():
    curvature = torch.func.hessian(lambda z: LogCoshLoss(reduction="sum")(z, torch.zeros(1)))(torch.zeros(1))
    assert_close(curvature, torch.ones(1, 1))


def test_log_cosh_far_out_is_absolute_less_log_two():
    far = torch.tensor([-1e4, 1e4])
    assert_close(LogCoshLoss(reduction="none")(far, torch.zeros(2)), far.abs() - math.log(2))


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_pinball_is_sklearns(batch, quantile):
    output, target = batch
    assert_close(PinballLoss(quantile)(output, target).item(), mean_pinball_loss(target, output, alpha=quantile))


def test_pinball_fits_the_quantile(batch):
    _, target = batch
    assert_close(best_constant(PinballLoss(0.81), target), target.quantile(0.82).item(), atol=1e-6, rtol=0)


def test_pinball_is_half_the_absolute_error_at_the_median(batch):
    assert_close(PinballLoss(0.5)(*batch), AbsoluteLoss()(*batch) / 2)


def test_biweight_gradient_is_tukeys_weight_times_the_residual(batch):
    output, target = batch
    output.requires_grad_()
    TukeyBiweightLoss(3.0, reduction="sum")(output, target).backward()
    residual = (output - target).detach()
    assert (residual.abs() > 3).any()
    expected = torch.where(residual.abs() <= 3, residual * (1 - (residual / 3) ** 2) ** 2, 0.0)
    assert_close(output.grad, expected)


def test_biweight_is_bounded_and_half_the_square_near_zero():
    loss = TukeyBiweightLoss(3.0, reduction="none")
    zero = torch.zeros(3, dtype=torch.float64)
    assert_close(loss(torch.tensor([3.0, -99.0, 1e8]).double(), zero), torch.full((3,), 1.5, dtype=torch.float64))
    near = torch.tensor([1e-4, -1e-5, 0.0], dtype=torch.float64)
    assert_close(loss(near, zero), near**2 / 2, rtol=1e-8, atol=0)


def test_outlier_moves_the_robust_fits_less_than_the_mean(batch):
    _, target = batch
    spoiled = torch.cat([target, torch.full((5,), 50.0, dtype=torch.float64)])

    def moved(loss):
        return abs(best_constant(loss, spoiled) - best_constant(loss, target))

    assert moved(TukeyBiweightLoss()) < 1e-6
    assert moved(SquaredLoss()) > 2  # the bounded search stops at 4; the mean itself moves by 4.4
    assert all(moved(loss) < 0.4 for loss in (AbsoluteLoss(), HuberLoss(), LogCoshLoss()))


@pytest.mark.parametrize("make", [HuberLoss, TukeyBiweightLoss])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_scales_must_be_positive(make, value):
    with pytest.raises(ValueError, match="must be finite and > 0"):
        make(value)
