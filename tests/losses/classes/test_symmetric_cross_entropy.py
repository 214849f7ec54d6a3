import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import MeanAbsoluteErrorLoss, SymmetricCrossEntropyLoss


@pytest.fixture
def batch(generator):
    return 2 * torch.randn(20, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (20,), generator=generator
    )


def test_is_cross_entropy_and_the_reverse_with_a_clipped_log(batch):
    logits, target = batch
    p, one_hot = logits.softmax(1), torch.eye(5, dtype=torch.float64)[target]
    reverse = -(p * one_hot.log().clamp(min=-3.0)).sum(1)
    expected = 0.3 * -(one_hot * p.log()).sum(1) + 0.8 * reverse
    assert_close(SymmetricCrossEntropyLoss(0.3, 0.8, -3.0, reduction="none")(logits, target), expected)


def test_without_the_reverse_is_cross_entropy(batch):
    assert_close(SymmetricCrossEntropyLoss(1.0, 0.0)(*batch), cross_entropy(*batch))


def test_without_cross_entropy_is_twice_the_mean_absolute_error(batch):
    assert_close(SymmetricCrossEntropyLoss(0.0, 1.0)(*batch), 2 * MeanAbsoluteErrorLoss()(*batch))


def test_labels_clipped_at_1e_4_as_published_code_does_are_another_log_clip(batch):
    logits, target = batch
    clipped = torch.eye(5, dtype=torch.float64)[target].clamp(min=1e-4)
    published = -(logits.softmax(1) * clipped.log()).sum(1).mean()
    assert_close(SymmetricCrossEntropyLoss(0.0, 1.0, log_clip=-9.210340371976182)(logits, target), published)
    assert SymmetricCrossEntropyLoss(0.0, 1.0)(logits, target) < published / 2


@pytest.mark.parametrize("log_clip", [0.0, 1.0])
def test_log_clip_must_be_negative(log_clip):
    with pytest.raises(ValueError, match="log_clip must be in"):
        SymmetricCrossEntropyLoss(log_clip=log_clip)
