import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import (
    GeneralizedCrossEntropyLoss,
    MeanAbsoluteErrorLoss,
    TruncatedGeneralizedCrossEntropyLoss,
)


@pytest.fixture
def batch(generator):
    return 2 * torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (32,), generator=generator
    )


def label_probability(logits, target):
    return logits.softmax(1)[torch.arange(len(target)), target]


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_is_one_less_the_power_of_the_label_probability(batch, q):
    expected = (1 - label_probability(*batch) ** q) / q
    assert_close(GeneralizedCrossEntropyLoss(q, reduction="none")(*batch), expected)


def test_vanishing_q_is_cross_entropy(batch):
    assert_close(GeneralizedCrossEntropyLoss(1e-10)(*batch), cross_entropy(*batch))


def test_vanishing_tensor_q_keeps_float32_digits(batch):
    logits, target = batch
    loss = GeneralizedCrossEntropyLoss(torch.tensor(1e-6))
    assert_close(loss(logits.float(), target), cross_entropy(logits.float(), target))


def test_q_one_is_half_the_mean_absolute_error(batch):
    assert_close(GeneralizedCrossEntropyLoss(1.0)(*batch), MeanAbsoluteErrorLoss()(*batch) / 2)


def test_gradient_is_cross_entropys_times_the_label_probability_to_the_q(batch):
    logits, target = batch
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(GeneralizedCrossEntropyLoss(0.7, reduction="sum")(logits, target), logits)
    (plain,) = torch.autograd.grad(cross_entropy(logits, target, reduction="sum"), logits)
    assert_close(ours, plain * label_probability(logits, target)[:, None] ** 0.7)


def test_q_is_differentiable_and_its_derivative_right(batch):
    q = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    loss = GeneralizedCrossEntropyLoss()
    loss.q = q
    loss(*batch).backward()
    above, below = (GeneralizedCrossEntropyLoss(0.6 + h)(*batch) for h in (1e-6, -1e-6))
    assert_close(q.grad, (above - below) / 2e-6, rtol=1e-6, atol=0)


@pytest.mark.parametrize("q", [0.0, -0.5, 1.5, math.nan])
def test_q_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match="q must be in"):
        GeneralizedCrossEntropyLoss(q)


def test_truncation_takes_the_smaller_of_the_loss_and_its_value_at_k(batch):
    q, k = 0.7, 0.3
    expected = GeneralizedCrossEntropyLoss(q, reduction="none")(*batch).clamp(max=(1 - k**q) / q)
    assert_close(TruncatedGeneralizedCrossEntropyLoss(q, k, reduction="none")(*batch), expected)


def test_rows_below_k_have_no_gradient_and_the_others_keep_theirs(batch):
    logits, target = batch
    logits.requires_grad_()
    improbable = label_probability(logits, target) <= 0.3
    assert improbable.any()
    assert not improbable.all()
    truncated, plain = TruncatedGeneralizedCrossEntropyLoss(0.7, 0.3), GeneralizedCrossEntropyLoss(0.7)
    (ours,) = torch.autograd.grad(truncated(logits, target), logits)
    (theirs,) = torch.autograd.grad(plain(logits, target), logits)
    assert_close(ours, torch.where(improbable[:, None], 0.0, theirs))


def test_vanishing_k_truncates_nothing(batch):
    assert_close(TruncatedGeneralizedCrossEntropyLoss(k=1e-300)(*batch), GeneralizedCrossEntropyLoss()(*batch))


def test_truncation_begins_after_the_warmup(batch):
    loss = TruncatedGeneralizedCrossEntropyLoss(0.7, 0.5, warmup=0.4)
    truncated, plain = loss(*batch), GeneralizedCrossEntropyLoss(0.7)(*batch)
    assert truncated < plain
    for fraction, expected in ((0.0, plain), (0.39, plain), (0.4, truncated), (1.0, truncated)):
        loss.set_progress(fraction)
        assert_close(loss(*batch), expected)


def test_progress_is_part_of_the_state():
    loss, other = TruncatedGeneralizedCrossEntropyLoss(), TruncatedGeneralizedCrossEntropyLoss()
    loss.set_progress(0.25)
    other.load_state_dict(loss.state_dict())
    assert other.progress == 0.25
