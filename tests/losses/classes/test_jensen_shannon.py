"""Jensen-Shannon loss: its definition, and the two losses that it lies between."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import JensenShannonLoss


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


@pytest.mark.parametrize("pi", [0.05, 0.5, 0.9])
def test_equals_its_two_relative_entropies(batch, pi):
    logits, target = batch
    p, label = softmax(logits.numpy(), axis=1), torch.eye(5).double().numpy()[target.numpy()]
    middle = pi * label + (1 - pi) * p
    divergence = pi * rel_entr(label, middle).sum(axis=1) + (1 - pi) * rel_entr(p, middle).sum(axis=1)
    expected = torch.from_numpy(divergence / (-(1 - pi) * math.log(1 - pi)))
    assert_close(JensenShannonLoss(pi, reduction="none")(logits, target), expected)
    assert_close(JensenShannonLoss(torch.tensor(pi).double(), reduction="none")(logits, target), expected)


def test_equal_weights_are_scipys_squared_distance(batch):
    logits, target = batch
    label = torch.eye(5).double()[target]
    expected = jensenshannon(logits.softmax(dim=1).numpy(), label.numpy(), axis=1) ** 2 / (0.5 * math.log(2))
    assert_close(JensenShannonLoss(0.5, reduction="none")(logits, target), torch.from_numpy(expected))


@pytest.mark.parametrize(("pi", "dtype", "atol"), [(1e-6, torch.float64, 1e-4), (1e-4, torch.float32, 5e-3)])
def test_vanishing_pi_is_cross_entropy(batch, pi, dtype, atol):
    logits, target = batch[0].to(dtype), batch[1]
    expected = cross_entropy(logits, target, reduction="none")
    assert_close(JensenShannonLoss(pi, reduction="none")(logits, target), expected, atol=atol, rtol=0)


def test_pi_near_one_is_half_the_absolute_error(batch):
    logits, target = batch
    error = 1 - logits.softmax(dim=1)[range(32), target]
    values = [JensenShannonLoss(1 - 10.0**-k, reduction="none")(logits, target) for k in (1, 4, 8, 15)]
    gaps = torch.stack([(value - error).abs() for value in values])
    # The gap falls as 1 / log(1 / (1 - pi)).
    assert (gaps.diff(dim=0) < 0).all()
    assert gaps[-1].max() < 0.04


def test_no_row_costs_more_than_two_at_equal_weights():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    values = JensenShannonLoss(0.5, reduction="none")(logits.expand(3, 3), torch.arange(3))
    assert_close(values, torch.tensor([0.0, 2.0, 2.0]))


def test_pi_is_learnable(batch):
    pi = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda share: JensenShannonLoss(share)(*batch), pi)


@pytest.mark.parametrize("pi", [0.0, 1.0])
def test_the_limits_themselves_are_refused(pi):
    with pytest.raises(ValueError, match=r"pi must be in \(0, 1\)"):
        JensenShannonLoss(pi)
