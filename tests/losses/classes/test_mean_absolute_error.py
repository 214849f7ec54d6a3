import pytest
import torch
from torch.testing import assert_close

from lossworks.losses import MeanAbsoluteErrorLoss


@pytest.fixture
def logits(generator):
    return 3 * torch.randn(16, 6, dtype=torch.float64, generator=generator)


def test_is_the_absolute_difference_to_the_one_hot_label(logits, generator):
    target = torch.randint(6, (16,), generator=generator)
    expected = (torch.eye(6, dtype=torch.float64)[target] - logits.softmax(1)).abs().sum(1)
    assert_close(MeanAbsoluteErrorLoss(reduction="none")(logits, target), expected)


def test_is_symmetric_over_labels(logits):
    loss = MeanAbsoluteErrorLoss(reduction="none")
    over_labels = sum(loss(logits, torch.full((16,), k)) for k in range(6))
    assert_close(over_labels, torch.full((16,), 2.0 * 5, dtype=torch.float64))


def test_uniform_noise_scales_and_shifts_the_risk_alone(logits, generator):
    target, rate = torch.randint(6, (16,), generator=generator), 0.4
    loss = MeanAbsoluteErrorLoss(reduction="none")
    noisy = (1 - rate) * loss(logits, target)
    for shift in range(1, 6):
        noisy = noisy + rate / 5 * loss(logits, (target + shift) % 6)
    assert_close(noisy, (1 - rate - rate / 5) * loss(logits, target) + rate / 5 * 10)


def test_probabilities_as_target_are_compared_number_by_number(logits, generator):
    target = torch.randn(16, 6, dtype=torch.float64, generator=generator).softmax(1)
    expected = torch.cdist(target[:, None], logits.softmax(1)[:, None], p=1).flatten()
    assert_close(MeanAbsoluteErrorLoss(reduction="none")(logits, target), expected)
