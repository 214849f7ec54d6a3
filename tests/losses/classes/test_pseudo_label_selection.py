import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.losses import PseudoLabelSelectionLoss, pseudo_label_targets, uniform_prediction_loss


@pytest.fixture
def rows():
    draw = torch.Generator().manual_seed(0)
    output = torch.randn(8, 3, generator=draw, dtype=torch.float64)
    views = torch.randn(2, 8, 4, generator=draw, dtype=torch.float64)
    return output, torch.randint(3, (8,), generator=draw), torch.rand(8, generator=draw, dtype=torch.float64), views


def test_without_weights_or_terms_it_is_cross_entropy(rows):
    output, target, _, _ = rows
    assert_close(PseudoLabelSelectionLoss()(output, target), F.cross_entropy(output, target))
    soft = torch.rand(8, 3, dtype=torch.float64).softmax(1)
    assert_close(PseudoLabelSelectionLoss()(output, soft), F.cross_entropy(output, soft))


def test_equals_its_three_terms_spelled_out_row_by_row(rows):
    output, target, weight, (first, second) = rows
    p = output.softmax(1)
    own = sum(-weight[i] * p[i, target[i]].log() for i in range(8)) / weight.sum()
    mean = p.mean(0)
    spread = sum(math.log(1 / (3 * float(mean[k]))) / 3 for k in range(3))
    together = 0.0
    for i in range(8):
        cosines = torch.stack([F.cosine_similarity(first[i], second[j], dim=0) / 0.2 for j in range(8)])
        same = [j for j in range(8) if target[j] == target[i]]
        together -= sum(cosines[j] - cosines.logsumexp(0) for j in same) / len(same) / 8
    loss = PseudoLabelSelectionLoss(uniform=0.7, contrast=0.4)
    assert_close(loss(output, target, first, second, sample_weight=weight), own + 0.7 * spread + 0.4 * together)


def test_mixup_is_the_two_halves_in_their_shares(rows):
    output, target, weight, _ = rows
    other = torch.arange(7, -1, -1)
    loss, share = PseudoLabelSelectionLoss(), 0.3
    first = (F.cross_entropy(output, target, reduction="none") * weight).sum() / weight.sum()
    second = (F.cross_entropy(output, target[other], reduction="none") * weight[other]).sum() / weight.sum()
    halves = share * loss(output, target, sample_weight=weight) + (1 - share) * loss(
        output, target[other], sample_weight=weight[other]
    )
    assert_close(halves, share * first + (1 - share) * second)


def test_the_penalty_is_0_where_the_mean_is_uniform_and_positive_elsewhere():
    certain = 50 * torch.eye(4, dtype=torch.float64)
    assert_close(uniform_prediction_loss(certain), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    assert uniform_prediction_loss(certain[:3]) > 1
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        assert uniform_prediction_loss(torch.randn(5, 4, generator=draw)) >= 0


def test_the_penalty_is_finite_where_a_class_is_never_predicted():
    output = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    penalty = uniform_prediction_loss(output)
    penalty.backward()
    assert penalty.isfinite()
    assert output.grad.isfinite().all()


def test_targets_are_sharpened_guesses_where_noisy(rows):
    output, target, _, _ = rows
    noisy = torch.arange(8) % 2 == 0
    targets = pseudo_label_targets(target, output, noisy, gamma=3.0)
    p = output.softmax(1) ** 3
    assert_close(targets[noisy], (p / p.sum(1, keepdim=True))[noisy])
    assert torch.equal(targets[~noisy], F.one_hot(target, 3).double()[~noisy])


def test_gradients_are_those_of_finite_differences(rows):
    output, target, weight, (first, second) = rows
    loss = PseudoLabelSelectionLoss(uniform=1.0, contrast=1.0)
    inputs = [tensor.clone().requires_grad_() for tensor in (output, first, second)]
    assert torch.autograd.gradcheck(lambda z, f, g: loss(z, target, f, g, sample_weight=weight), inputs)


def test_no_rows_or_no_weight_is_0():
    loss = PseudoLabelSelectionLoss(uniform=1.0)
    assert loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 0
    assert PseudoLabelSelectionLoss()(torch.zeros(2, 3), torch.tensor([0, 1]), sample_weight=torch.zeros(2)) == 0


def test_says_what_is_wrong(rows):
    output, target, _, views = rows
    with pytest.raises(ValueError, match="features and other_features must be given"):
        PseudoLabelSelectionLoss(contrast=1.0)(output, target)
    with pytest.raises(ValueError, match="other_features must have the shape of features"):
        PseudoLabelSelectionLoss(contrast=1.0)(output, target, views[0], views[1][:, :2])
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        PseudoLabelSelectionLoss(temperature=0.0)
    with pytest.raises(ValueError, match="NaN in row 3"):
        PseudoLabelSelectionLoss()(output.index_fill(0, torch.tensor([3]), torch.nan), target)
    with pytest.raises(TypeError, match="noisy must be bool"):
        pseudo_label_targets(target, output, target)


@pytest.mark.parametrize("shape", [(4, 2, 3), (4,), (3, 2)])
def test_features_that_are_not_one_vector_a_row_are_named(shape):
    features = torch.randn(shape)
    with pytest.raises(ValueError, match=r"features must have shape \(4, d\), got"):
        PseudoLabelSelectionLoss()._contrast(features, features, torch.tensor([0, 1, 0, 1]))
