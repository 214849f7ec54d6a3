import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.distill import WeightAwareDistillationLoss


@pytest.fixture
def rows(generator):
    draw = {"generator": generator}
    labelled = torch.randn(4, 3, dtype=torch.float64, **draw), torch.tensor([0, 2, 1, 1])
    return labelled, (
        torch.randn(6, 3, dtype=torch.float64, **draw),
        torch.randint(3, (6,), **draw),
        torch.rand(6, dtype=torch.float64, **draw),
    )


def test_equals_its_two_means_row_by_row(rows):
    (output, target), (others, pseudo, weights) = rows
    first = sum(-output[i].softmax(0)[target[i]].log() for i in range(4)) / 4
    second = sum(-weights[j] * others[j].softmax(0)[pseudo[j]].log() for j in range(6)) / 6
    assert_close(WeightAwareDistillationLoss(0.7)(output, target, others, pseudo, weights), first + 0.7 * second)


def test_without_weights_it_is_self_training_and_without_rows_supervised(rows):
    (output, target), (others, pseudo, _) = rows
    plain = cross_entropy(output, target)
    assert_close(WeightAwareDistillationLoss()(output, target), plain)
    found = WeightAwareDistillationLoss()(output, target, others, pseudo)
    assert_close(found, plain + cross_entropy(others, pseudo))
    assert_close(WeightAwareDistillationLoss()(output, target, others[:0], pseudo[:0]), plain)
    assert_close(WeightAwareDistillationLoss(0.0)(output, target, others, pseudo), plain)


def test_weights_of_labelled_rows_divide_by_their_sum(rows):
    (output, target), _ = rows
    weight = torch.tensor([1.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    losses = cross_entropy(output, target, reduction="none")
    found = WeightAwareDistillationLoss()(output, target, sample_weight=weight)
    assert_close(found, (losses * weight).sum() / weight.sum())


def test_no_gradient_goes_through_the_weights(rows):
    (output, target), (others, pseudo, weights) = rows
    weights, others = weights.clone().requires_grad_(), others.clone().requires_grad_()
    WeightAwareDistillationLoss()(output, target, others, pseudo, weights).backward()
    assert weights.grad is None
    assert others.grad.any()


def test_says_what_is_wrong(rows):
    (output, target), (others, pseudo, weights) = rows
    loss = WeightAwareDistillationLoss()
    with pytest.raises(ValueError, match="pseudo must be given beside unlabelled"):
        loss(output, target, others)
    with pytest.raises(ValueError, match="weights must have the shape of pseudo"):
        loss(output, target, others, pseudo, weights[:3])
    with pytest.raises(ValueError, match="weights must be >= 0"):
        loss(output, target, others, pseudo, -weights)
    with pytest.raises(ValueError, match="strength must be finite and >= 0"):
        WeightAwareDistillationLoss(-1.0)
