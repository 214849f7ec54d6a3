"""Multi-class hinges: torch's where torch has it, brute force where not."""

import pytest
import torch
from torch.nn.functional import multi_margin_loss
from torch.testing import assert_close
from torchmetrics.functional.classification import multiclass_hinge_loss

from lossworks.losses import CrammerSingerLoss, WestonWatkinsLoss

LOSSES = [WestonWatkinsLoss, CrammerSingerLoss]


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


@pytest.mark.parametrize("margin", [0.3, 1.0, 4.0])
def test_weston_watkins_is_torchs_multi_margin_times_the_classes(batch, margin):
    logits, target = batch
    expected = 5 * multi_margin_loss(logits, target, margin=margin, reduction="none")
    assert_close(WestonWatkinsLoss(margin, reduction="none")(logits, target), expected)


def test_crammer_singer_is_torchmetrics_hinge(batch):
    # torchmetrics turns scores outside [0, 1] into probabilities first, so it is given probabilities.
    scores, target = batch[0].softmax(dim=1), batch[1]
    expected = multiclass_hinge_loss(scores, target, num_classes=5, multiclass_mode="crammer-singer")
    assert_close(CrammerSingerLoss()(scores, target), expected.double(), check_dtype=False)


def test_crammer_singer_equals_brute_force(batch):
    logits, target = batch
    expected = [
        max(0.0, 0.7 + max(z for k, z in enumerate(row) if k != label) - row[label])
        for row, label in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    assert_close(CrammerSingerLoss(0.7, reduction="none")(logits, target), torch.tensor(expected).double())


def test_two_classes_make_them_one_hinge(generator):
    logits, target = torch.randn(32, 2, generator=generator), torch.randint(2, (32,), generator=generator)
    assert_close(
        WestonWatkinsLoss(reduction="none")(logits, target), CrammerSingerLoss(reduction="none")(logits, target)
    )


def test_the_strongest_rival_costs_at_most_as_much_as_all(batch):
    assert (CrammerSingerLoss(reduction="none")(*batch) <= WestonWatkinsLoss(reduction="none")(*batch) + 1e-12).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_win_by_more_than_the_margin_costs_exactly_nothing(loss, scale):
    logits = scale * torch.tensor([[2.0, -1.3, 0.7], [0.123, 0.0, 3.3]], requires_grad=True)
    logits.retain_grad()
    value = loss(0.1, reduction="none")(logits, torch.tensor([0, 2]))
    value.sum().backward()
    assert (value == 0).all()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_margin_is_learnable(batch, loss):
    margin = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: loss(m)(*batch), margin)
    assert torch.autograd.gradcheck(lambda z: loss(margin.detach())(z, batch[1]), batch[0].requires_grad_())
