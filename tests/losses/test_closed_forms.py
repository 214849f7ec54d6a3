"""Gradients that a loss has in closed form, for the fused losses, are those of autograd."""

import pytest
import torch
from torch.testing import assert_close

from lossworks.losses import AdaptiveLDRLoss, LDRLoss, PredictionEntropyLoss, SmoothingConsistencyLoss

ROWS, CLASSES = 7, 6
LOSSES = (
    LDRLoss(lam=2.0, margin=0.3),
    LDRLoss(lam=0.5, normalize="l1_mean"),
    LDRLoss(lam=2.0, normalize="softplus_mean"),
    AdaptiveLDRLoss(ROWS, lam0=0.7),
    AdaptiveLDRLoss(ROWS, normalize="softplus_mean"),
    AdaptiveLDRLoss(ROWS, normalize=None),
    PredictionEntropyLoss(lam=0.8),
    SmoothingConsistencyLoss(eta=0.3),
)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_closed_form_is_the_value_and_its_derivative(loss, generator):
    logits = 3 * torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=generator)
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    index = {"index": torch.arange(ROWS)} if loss.needs_index else {}
    memory = loss.recall(logits, target, **index) if index else None
    remembered = {} if memory is None else {"memory": memory}
    given = logits.clone()
    value, gradient = loss.value_and_logit_gradient(given, target, **remembered)
    assert_close(given, logits, rtol=0, atol=0)
    leaf = logits.clone().requires_grad_()
    each = loss.per_sample(leaf, target, **index, **remembered)
    assert_close(value, each.detach())
    assert_close(gradient, torch.autograd.grad(each.sum(), leaf)[0])


def test_a_loss_with_a_memory_asks_for_it():
    assert AdaptiveLDRLoss(1).value_and_logit_gradient(torch.zeros(1, 3), torch.tensor([0])) is None
