import math

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from lossworks.embed import FeatureSeparationLoss


@pytest.fixture
def rows(generator):
    return torch.randn(9, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0, 7, 2, 1])


def by_hand(features, target, tau):
    losses = []
    for i in range(len(target)):
        others = [j for j in range(len(target)) if j != i]
        cosines = {j: float(cosine_similarity(features[i], features[j], dim=0)) for j in others}
        total = math.log(sum(math.exp(cosines[j] / tau) for j in others))
        own = [j for j in others if target[j] == target[i]]
        losses.append(sum(total - cosines[j] / tau for j in own) / max(len(own), 1))
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_equals_its_sums_row_by_row(rows, tau):
    features, target = rows
    loss = FeatureSeparationLoss(tau)
    assert_close(loss.per_row(features, target), by_hand(features, target, tau))
    assert_close(loss(features, target), by_hand(features, target, tau).mean())


def test_weights_count_rows(rows):
    features, target = rows
    weight = torch.arange(1, 10, dtype=torch.float64)
    wanted = (weight * by_hand(features, target, 0.1)).sum() / weight.sum()
    assert_close(FeatureSeparationLoss()(features, target, sample_weight=weight), wanted)


def test_permutes_with_the_rows_and_reads_directions_alone(rows, generator):
    features, target = rows
    losses = FeatureSeparationLoss().per_row(features, target)
    order = torch.randperm(9, generator=generator)
    assert_close(FeatureSeparationLoss().per_row(features[order], target[order]), losses[order])
    scale = 1 + torch.rand(9, 1, generator=generator, dtype=torch.float64)
    assert_close(FeatureSeparationLoss().per_row(scale * features, target), losses)


def test_the_floor_is_the_logarithm_of_the_number_of_positives(rows):
    features, target = rows
    counts = torch.tensor([int((target == y).sum()) - 1 for y in target])
    losses = FeatureSeparationLoss().per_row(features, target)
    assert (losses >= counts.clamp(min=1).log() - 1e-9)[counts > 0].all()
    apart = torch.eye(4, dtype=torch.float64)[torch.where(target == 7, 3, target)]
    floor = counts.clamp(min=1).double().log()
    assert_close(FeatureSeparationLoss(0.01).per_row(apart, target), floor, atol=1e-9, rtol=0)
    one = FeatureSeparationLoss().per_row(torch.ones(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    assert_close(one, torch.full((5,), math.log(4), dtype=torch.float64))


def test_a_row_without_its_like_has_no_loss_and_no_gradient():
    features = torch.randn(1, 3, requires_grad=True)
    value = FeatureSeparationLoss()(features, torch.tensor([5]))
    value.backward()
    assert value == 0
    assert not features.grad.any()
    features = torch.randn(4, 3, requires_grad=True)
    value = FeatureSeparationLoss()(features, torch.arange(4))
    value.backward()
    assert value == 0
    assert not features.grad.any()


def test_gradients_are_those_of_finite_differences_and_finite_at_extremes(rows):
    features, target = rows
    assert torch.autograd.gradcheck(lambda h: FeatureSeparationLoss()(h, target), features.clone().requires_grad_())
    for extreme in (torch.zeros(9, 4), torch.full((9, 4), 1e4), 1e4 * features.float()):
        extreme = extreme.clone().requires_grad_()
        FeatureSeparationLoss()(extreme, target).backward()
        assert extreme.grad.isfinite().all()


def test_is_as_precise_under_autocast_and_finite_in_half_precision(rows):
    features, target = rows
    wanted = FeatureSeparationLoss()(features.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(FeatureSeparationLoss()(features.float(), target), wanted)
    for dtype in (torch.bfloat16, torch.float16):
        half = features.to(dtype).requires_grad_()
        value = FeatureSeparationLoss()(half, target)
        value.backward()
        assert_close(value, wanted, rtol=0.05, atol=0)
        assert half.grad.isfinite().all()


def test_says_what_is_wrong(rows):
    features, target = rows
    loss = FeatureSeparationLoss()
    with pytest.raises(ValueError, match="tau must be finite and > 0"):
        FeatureSeparationLoss(0.0)
    with pytest.raises(ValueError, match=r"output must have shape \(n, d\)"):
        loss(features[0], target)
    with pytest.raises(ValueError, match=r"target must have shape \(9,\)"):
        loss(features, target[:4])
    with pytest.raises(TypeError, match="target must be int64"):
        loss(features, target.float())
    with pytest.raises(ValueError, match="NaN in row 3"):
        loss(features.index_fill(0, torch.tensor([3]), torch.nan), target)
