import math

import pytest
import torch
from scipy.stats import entropy
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss, PredictionEntropyLoss


@pytest.fixture
def batch(generator):
    return 2 * torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (32,), generator=generator
    )


def _price(logits, target, lam):
    losses = PredictionEntropyLoss(lam, reduction="none")(logits, target)
    return losses - cross_entropy(logits, target, reduction="none")


def test_adds_scipys_entropy(batch):
    logits, target = batch
    assert_close(_price(logits, target, 0.7), 0.7 * torch.from_numpy(entropy(logits.softmax(1).numpy(), axis=1)))


def test_without_a_price_is_cross_entropy(batch):
    assert_close(PredictionEntropyLoss(0.0)(*batch), CrossEntropyLoss()(*batch))


def test_the_price_is_highest_for_uniform_and_none_for_certain_rows(batch):
    logits, target = batch
    price = _price(logits, target, 2.0)
    assert ((price > 0) & (price < 2 * math.log(5))).all()
    assert_close(_price(torch.zeros(1, 5), target[:1], 2.0).item(), 2 * math.log(5), atol=1e-6, rtol=0)
    assert _price(torch.tensor([[0.0, 1e4, 0.0]]), torch.tensor([1]), 2.0).item() == 0


def test_gradient_of_the_entropy_in_closed_form(batch):
    logits, target = batch
    logits.requires_grad_()
    (found,) = torch.autograd.grad(_price(logits, target, 1.0).sum(), logits)
    p = logits.detach().softmax(1)
    wanted = -p * (p.log() - (p * p.log()).sum(1, keepdim=True))
    assert_close(found, wanted)


def test_a_step_along_it_widens_the_gap_of_the_top_two():
    logits = torch.tensor([[1.0, 0.5, -1.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(_price(logits, torch.tensor([1]), 1.0).sum(), logits)
    top = (logits - 0.1 * slope).detach().topk(2).values[0]
    assert top[0] - top[1] > 0.5


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="lam must be finite and >= 0"):
        PredictionEntropyLoss(-0.1)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("lam", [0.7, 3.0])
def test_a_masked_class_is_as_if_it_were_not_there(batch, lam, soft):
    logits, target = batch
    target = target.clamp(max=3)
    others = logits[:, :4].clone().requires_grad_()
    masked = torch.cat([others.detach(), torch.full((32, 1), -math.inf)], dim=1).requires_grad_()
    label = torch.nn.functional.one_hot(target, 5).double().roll(1, 0) * 0.3 + torch.tensor([0.7, 0, 0, 0, 0])
    loss = PredictionEntropyLoss(lam, reduction="none")
    found = loss(masked, label if soft else target)
    wanted = loss(others, label[:, :4] if soft else target)
    assert_close(found, wanted)
    (slope,), (right,) = (torch.autograd.grad(each.sum(), leaf) for each, leaf in ((found, masked), (wanted, others)))
    assert_close(slope[:, :4], right)
    assert bool((slope[:, 4] == 0).all())


def test_a_masked_class_is_as_if_it_were_not_there_in_closed_form(batch):
    logits, target = batch
    target = target.clamp(max=3)
    p = logits[:, :4].softmax(1)
    surprise = torch.from_numpy(entropy(p.numpy(), axis=1))
    value, slope = (
        PredictionEntropyLoss(3.0)
        .closed_form(5)
        .value_and_gradient(torch.cat([logits[:, :4], torch.full((32, 1), -math.inf)], dim=1), target)
    )
    assert_close(value, cross_entropy(logits[:, :4], target, reduction="none") + 3.0 * surprise)
    assert_close(slope[:, :4], p - torch.eye(4)[target] - 3.0 * p * (p.log() + surprise[:, None]))
    assert bool((slope[:, 4] == 0).all())


def test_a_masked_label_costs_infinitely_much():
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    assert PredictionEntropyLoss()(logits, torch.tensor([2])).item() == math.inf
    assert PredictionEntropyLoss()(logits, torch.tensor([[0.5, 0.0, 0.5]])).item() == math.inf
    value, _ = PredictionEntropyLoss().closed_form(3).value_and_gradient(logits, torch.tensor([2]))
    assert value.item() == math.inf
