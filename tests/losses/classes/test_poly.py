"""Poly-1: cross-entropy with the first term of its expansion changed."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import PolyLoss


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


def test_epsilon_zero_is_cross_entropy(batch):
    logits, target = batch
    assert_close(PolyLoss(0.0)(logits, target), cross_entropy(logits, target))


@pytest.mark.parametrize("epsilon", [-1.0, 0.5, 3.0])
def test_equals_its_power_series(batch, epsilon):
    logits, target = batch
    rest = 1 - logits.softmax(dim=1)[range(32), target]
    powers = torch.arange(1, 3000, dtype=torch.float64)
    coefficients = 1 / powers
    coefficients[0] += epsilon
    series = (coefficients * rest[:, None] ** powers).sum(dim=1)
    assert_close(PolyLoss(epsilon, reduction="none")(logits, target), series, atol=1e-9, rtol=0)


def test_one_hot_probabilities_equal_classes(batch):
    logits, target = batch
    one_hot = torch.eye(5, dtype=torch.float64)[target]
    assert_close(PolyLoss(2.0)(logits, one_hot), PolyLoss(2.0)(logits, target))


def test_is_affine_in_epsilon(batch):
    logits, target = batch
    low, middle, high = (PolyLoss(e, reduction="none")(logits, target) for e in (-1.0, 1.0, 3.0))
    assert_close(low + high, 2 * middle)


def test_epsilon_below_minus_one_is_refused():
    with pytest.raises(ValueError, match="epsilon must be in"):
        PolyLoss(-1.5)
