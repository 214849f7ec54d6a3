import math

import pytest
import torch
from scipy.stats import entropy
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss, PredictionEntropyPenalty


@pytest.fixture
def batch(generator):
    return 2 * torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (32,), generator=generator
    )


def _price(logits, target, lam):
    losses = PredictionEntropyPenalty(lam, reduction="none")(logits, target)
    return losses - cross_entropy(logits, target, reduction="none")


def test_adds_scipys_entropy(batch):
    logits, target = batch
    assert_close(_price(logits, target, 0.7), 0.7 * torch.from_numpy(entropy(logits.softmax(1).numpy(), axis=1)))


def test_without_a_price_is_cross_entropy(batch):
    assert_close(PredictionEntropyPenalty(0.0)(*batch), CrossEntropyLoss()(*batch))


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
        PredictionEntropyPenalty(-0.1)
