"""The Brier score: its definition, its bounds, and that it is proper."""

import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import brier_score_loss
from torch.testing import assert_close

from lossworks.losses import BrierLoss


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


def test_equals_the_squared_distance_to_the_one_hot_label(batch):
    logits, target = batch
    expected = ((softmax(logits.numpy(), axis=1) - torch.eye(5).numpy()[target.numpy()]) ** 2).sum(axis=1)
    assert_close(BrierLoss(reduction="none")(logits, target), torch.from_numpy(expected))


def test_two_classes_are_twice_scikit_learns_score(generator):
    logits, target = torch.randn(64, 2, generator=generator), torch.randint(2, (64,), generator=generator)
    expected = 2 * brier_score_loss(target.numpy(), logits.softmax(dim=1)[:, 1].numpy())
    assert_close(BrierLoss()(logits, target).item(), expected, atol=1e-6, rtol=0)


def test_one_hot_probabilities_equal_classes(batch):
    logits, target = batch
    assert_close(BrierLoss()(logits, torch.eye(5, dtype=torch.float64)[target]), BrierLoss()(logits, target))


def test_expected_loss_is_least_at_the_truth(batch):
    truth = batch[0].softmax(dim=1)[:1]
    logits = truth.log().requires_grad_()
    losses = BrierLoss(reduction="none")(logits.expand(5, 5), torch.arange(5))
    (gradient,) = torch.autograd.grad((truth[0] * losses).sum(), logits)
    assert_close(gradient, torch.zeros(1, 5, dtype=torch.float64))


def test_lies_between_zero_and_two_at_any_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    values = BrierLoss(reduction="none")(logits.expand(3, 3), torch.arange(3))
    assert_close(values, torch.tensor([0.0, 2.0, 2.0]))


def test_closed_form_is_the_definitions_gradient_also_where_a_row_is_almost_right(batch):
    logits, target = batch
    logits = torch.cat([logits, 40 * torch.eye(5, dtype=torch.float64)])
    target = torch.cat([target, torch.arange(5)])
    p, label = logits.softmax(dim=1), torch.eye(5, dtype=torch.float64)[target]
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    value, gradient = BrierLoss().closed_form(5).value_and_gradient(logits, target)
    assert_close(value, (p - label).square().sum(dim=1), rtol=1e-12, atol=1e-15)
    assert_close(gradient, 2 * torch.einsum("nij,nj->ni", jacobian, p - label), rtol=1e-12, atol=1e-15)
