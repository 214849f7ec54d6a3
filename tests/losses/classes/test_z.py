import math

import pytest
import torch
from scipy.stats import zscore
from torch.testing import assert_close

from lossworks.losses import ZLoss, spherical_statistics, z_loss_from_statistics


@pytest.fixture
def batch(generator):
    return torch.randn(32, 6, dtype=torch.float64, generator=generator), torch.randint(6, (32,), generator=generator)


def test_equals_softplus_of_scipys_zscore(batch):
    logits, target = batch
    standardised = torch.from_numpy(zscore(logits.numpy(), axis=1))[torch.arange(32), target]
    wanted = torch.log1p(torch.exp(2 * (0.5 - standardised))) / 2
    assert_close(ZLoss(2.0, 0.5, reduction="none")(logits, target), wanted)


def test_shift_and_scale_change_nothing(batch):
    logits, target = batch
    loss = ZLoss(2.0, 0.5, reduction="none")
    assert_close(loss(30 * logits - 7, target), loss(logits, target))


def test_from_statistics_equals_dense_in_value_and_gradient(batch):
    logits, target = batch
    dense, rebuilt = (logits.clone().requires_grad_() for _ in range(2))
    wanted = ZLoss(2.0, 0.5, reduction="none")(dense, target)
    target_score = rebuilt.gather(1, target[:, None])[:, 0]
    losses = z_loss_from_statistics(target_score, rebuilt.sum(1), rebuilt.square().sum(1), 6, 2.0, 0.5)
    assert_close(losses, wanted, atol=1e-9, rtol=0)
    losses.sum().backward()
    wanted.sum().backward()
    assert_close(rebuilt.grad, dense.grad, atol=1e-9, rtol=0)


def test_spherical_statistics_give_the_dense_loss_and_its_gradients(generator):
    weight = torch.randn(50, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    hidden = torch.randn(9, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(50, (9,), generator=generator)
    dense = ZLoss(reduction="none")(hidden @ weight.T, target)
    statistics = spherical_statistics(hidden, weight, target, weight.T @ weight, weight.sum(0))
    factored = z_loss_from_statistics(*statistics, num_classes=50)
    assert_close(factored, dense)
    assert_close(
        torch.autograd.grad(factored.sum(), (hidden, weight)), torch.autograd.grad(dense.sum(), (hidden, weight))
    )


def test_large_a_is_the_hinge(batch):
    logits, target = batch
    standardised = torch.from_numpy(zscore(logits.numpy(), axis=1))[torch.arange(32), target]
    assert_close(ZLoss(1e8, 0.5, reduction="none")(logits, target), (0.5 - standardised).relu(), atol=1e-7, rtol=0)


def test_the_best_standardised_score_is_of_a_one_hot_row():
    logits = torch.tensor([[5.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    best = math.sqrt(5 - 1)
    assert_close(ZLoss()(logits, torch.tensor([0])).item(), math.log1p(math.exp(-best)))


def test_always_above_zero_and_above_the_one_hot_row(batch):
    losses = ZLoss(reduction="none")(*batch)
    assert (losses >= math.log1p(math.exp(-math.sqrt(5)))).all()


def test_gradient_is_orthogonal_to_shift_and_scale(batch):
    logits, target = batch
    logits.requires_grad_()
    ZLoss(2.0, 0.5, reduction="sum")(logits, target).backward()
    centred = logits.detach() - logits.detach().mean(1, keepdim=True)
    zero = torch.zeros(32, dtype=torch.float64)
    assert_close(logits.grad.sum(1), zero, atol=1e-12, rtol=0)
    assert_close((logits.grad * centred).sum(1), zero, atol=1e-12, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
@pytest.mark.parametrize("num_classes", [2, 7, 1237])
def test_constant_scores_have_finite_loss_and_gradient(value, num_classes):
    logits = torch.full((3, num_classes), value, requires_grad=True)
    target = torch.tensor([0, 1, 0])
    losses = ZLoss(reduction="none")(logits, target)
    losses.sum().backward()
    assert_close(losses, torch.full((3,), math.log(2)))
    assert logits.grad.isfinite().all()
    statistics = (
        torch.full((3,), value),
        torch.full((3,), value * num_classes),
        torch.full((3,), value**2 * num_classes),
    )
    leaves = [statistic.requires_grad_() for statistic in statistics]
    z_loss_from_statistics(*leaves, num_classes).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_a_large_shift_does_not_break_the_dense_form(batch):
    logits, target = batch
    exact = (logits * 64).round() / 64  # so that adding 2^13 is exact in float32
    assert_close(ZLoss()((exact + 8192).float(), target).double(), ZLoss()(exact, target), atol=1e-3, rtol=0)


def test_wrong_shapes_of_the_statistics_are_named():
    W, h = torch.ones(4, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"gram must have shape \(3, 3\) for hidden \(2, 3\), got \(4, 4\)"):
        spherical_statistics(h, W, torch.zeros(2, dtype=torch.int64), W @ W.T, W.sum(0))
    with pytest.raises(ValueError, match=r"must have one shape, got \(2,\), \(2,\), \(3,\)"):
        z_loss_from_statistics(torch.ones(2), torch.ones(2), torch.ones(3), 4)


def test_eps_out_of_range_is_named():
    with pytest.raises(ValueError, match="eps must be in"):
        ZLoss(eps=0.0)
