"""Focal loss: its definition, its limits, and the probabilities that its minimiser stands for."""

import pytest
import torch
from scipy.optimize import minimize
from scipy.special import softmax
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import FocalLoss


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


def test_gamma_zero_is_cross_entropy(batch):
    logits, target = batch
    assert_close(FocalLoss(0.0)(logits, target), cross_entropy(logits, target))
    assert_close(FocalLoss(torch.tensor(0.0))(logits, target), cross_entropy(logits, target))


def test_equals_the_definition_on_plain_probabilities(batch):
    logits, target = batch
    p = torch.from_numpy(softmax(logits.numpy(), axis=1))[range(32), target]
    assert_close(FocalLoss(2.5, reduction="none")(logits, target), -((1 - p) ** 2.5) * p.log())


def test_one_hot_probabilities_equal_classes(batch):
    logits, target = batch
    one_hot = torch.eye(5, dtype=torch.float64)[target]
    assert_close(FocalLoss(1.5)(logits, one_hot), FocalLoss(1.5)(logits, target))


def test_never_grows_with_gamma(batch):
    logits, target = batch
    values = torch.stack([FocalLoss(gamma, reduction="none")(logits, target) for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)])
    assert (values.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_predict_at_the_minimiser_is_the_truth(gamma):
    truth = torch.tensor([[0.55, 0.3, 0.1, 0.05]], dtype=torch.float64)
    loss = FocalLoss(gamma)

    def risk(z):
        logits = torch.tensor(z[None], requires_grad=True)
        value = loss(logits, truth)
        value.backward()
        return value.item(), logits.grad[0].numpy()

    best = torch.tensor(minimize(risk, x0=[0.0] * 4, jac=True, tol=1e-12).x)[None]
    assert_close(loss.predict(best), truth, atol=1e-5, rtol=0)
    assert gamma == 0 or best.softmax(dim=1).max() < truth.max() - 0.01


def test_predict_names_the_class_that_the_softmax_names(batch):
    logits = batch[0] * torch.logspace(-2, 3, 32, dtype=torch.float64)[:, None]
    assert_close(FocalLoss(2.0).predict(logits).argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_stay_finite_on_rows_that_are_surely_right_or_wrong(gamma):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [30.0, 0.0]], requires_grad=True)
    gamma = torch.tensor(gamma, requires_grad=True)
    FocalLoss(gamma)(logits, torch.tensor([0, 1, 0])).backward()
    assert logits.grad.isfinite().all()
    assert gamma.grad.isfinite()


def test_gamma_is_learnable(batch):
    logits, target = batch
    gamma = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: FocalLoss(g)(logits, target), gamma)
