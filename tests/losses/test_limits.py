"""The right values of losses at masked classes, lost labels, common offsets and small residuals."""

import math

import pytest
import torch

from lossworks.losses import (
    CompSumLoss,
    CrossEntropyLoss,
    FocalLoss,
    LDRLoss,
    LogCoshLoss,
    NormalizedCrossEntropyLoss,
    PolyLoss,
    WestonWatkinsLoss,
)

MASKED = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), FocalLoss(0.5), FocalLoss(2.0), PolyLoss(1.0)], ids=repr)
def test_soft_labels_with_a_masked_class_cost_what_they_cost_without_that_class(loss):
    soft = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(loss(MASKED, soft), loss(MASKED[:, :2], soft[:, :2]))


def test_a_smoothing_of_0_as_a_tensor_is_none():
    wanted = math.log1p(math.e)
    assert CrossEntropyLoss(torch.tensor(0.0))(MASKED, torch.tensor([0])).item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("loss", "limit"),
    [
        (CompSumLoss(tau=1.0), math.inf),
        (CompSumLoss(tau=torch.tensor(1.0)), math.inf),
        (CompSumLoss(tau=1.5), 2.0),
        (CompSumLoss(tau=0.5), math.inf),
        (NormalizedCrossEntropyLoss(), 1.0),
        (FocalLoss(2.0), math.inf),
        (WestonWatkinsLoss(), math.inf),
    ],
    ids=repr,
)
def test_a_label_that_is_masked_costs_the_limit(loss, limit):
    assert loss(MASKED, torch.tensor([2])).item() == limit


def test_a_margin_keeps_its_digits_at_a_common_offset():
    logits = torch.tensor([[1e6, 1e6 + 1, 1e6 - 2]])
    wanted = 2 * math.log(sum(math.exp(d / 2) for d in (0.0, 1.1, -1.9)) / 3)
    assert LDRLoss(lam=2.0, margin=0.1)(logits, torch.tensor([0])).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("residual", [1e-4, 1e-2, 0.999, 1.0, 30.0])
def test_log_cosh_has_the_digits_of_its_closed_form(residual):
    leaf = torch.tensor([residual], requires_grad=True)
    value = LogCoshLoss()(leaf, torch.zeros(1))
    assert value.item() == pytest.approx(math.log1p(2 * math.sinh(leaf.item() / 2) ** 2), rel=1e-6)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    assert torch.autograd.grad(slope, leaf)[0].item() == pytest.approx(math.cosh(residual) ** -2, rel=1e-4, abs=1e-9)
