import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import hinge_loss, log_loss
from torch.testing import assert_close

from lossworks.losses import ExponentialLoss, HingeLoss, LogisticLoss, SquaredHingeLoss


@pytest.fixture
def batch(generator):
    scores = 2 * torch.randn(40, dtype=torch.float64, generator=generator)
    return scores, torch.randint(2, (40,), generator=generator).double()


def test_logistic_is_sklearns_log_loss(batch):
    scores, target = batch
    assert_close(LogisticLoss()(scores, target).item(), log_loss(target.numpy(), scores.sigmoid().numpy()))


def test_hinge_is_sklearns_hinge_loss(batch):
    scores, target = batch
    assert_close(HingeLoss()(scores, target).item(), hinge_loss(target.numpy(), scores.numpy()))


@pytest.mark.parametrize("margin", [0.3, 1.0, 2.5])
def test_hinge_scales_with_its_margin(batch, margin):
    scores, target = batch
    assert_close(HingeLoss(margin)(scores, target), margin * HingeLoss()(scores / margin, target))


def test_squared_hinge_is_the_hinge_squared(batch):
    hinge = HingeLoss(0.7, reduction="none")(*batch)
    assert_close(SquaredHingeLoss(0.7, reduction="none")(*batch), hinge**2)


def test_exponential_is_exponential_up_to_its_limit(batch):
    scores, target = batch
    assert_close(ExponentialLoss(reduction="none")(scores, target), torch.exp(-(2 * target - 1) * scores))


def test_exponential_goes_on_along_its_tangent(generator):
    scores = torch.tensor([-3.0, -3.5, -100.0], dtype=torch.float64, requires_grad=True)
    losses = ExponentialLoss(limit=3.0, reduction="none")(scores, torch.ones(3, dtype=torch.float64))
    assert_close(losses.detach(), math.exp(3) * torch.tensor([1.0, 1.5, 98.0], dtype=torch.float64))
    losses.sum().backward()
    assert_close(scores.grad, torch.full((3,), -math.exp(3), dtype=torch.float64))


def test_exponential_is_finite_at_a_margin_of_minus_ten_thousand():
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = ExponentialLoss(limit=40.0)(scores, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("loss", [LogisticLoss(), ExponentialLoss()])
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.8])
def test_best_score_predicts_the_true_rate(loss, rate):
    def risk(score):
        scores = torch.tensor([score, score], dtype=torch.float64)
        weights = torch.tensor([rate, 1 - rate], dtype=torch.float64)
        return loss(scores, torch.tensor([1.0, 0.0]), sample_weight=weights).item()

    best = minimize_scalar(risk, bounds=(-10, 10), method="bounded", options={"xatol": 1e-9}).x
    assert loss.probabilistic
    assert_close(loss.predict(torch.tensor(best)).item(), rate, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [LogisticLoss(), HingeLoss(), SquaredHingeLoss(), ExponentialLoss()])
def test_swapping_the_labels_flips_the_sign(batch, loss):
    scores, target = batch
    assert_close(loss(scores, target), loss(-scores, 1 - target))


@pytest.mark.parametrize("limit", [0.0, 41.0])
def test_exponential_refuses_a_limit_that_overflows(limit):
    with pytest.raises(ValueError, match="limit must be in"):
        ExponentialLoss(limit)
