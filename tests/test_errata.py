"""docs/errata.md, entry by entry: what published code computes, and that ours computes what the paper says."""

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot
from torch.testing import assert_close

from claims.ldr_table import RobustLogLoss, mislabel
from lossworks.losses import (
    AdaptiveLDRLoss,
    BiTemperedLoss,
    MeanAbsoluteErrorLoss,
    PseudoHuberLoss,
    SymmetricCrossEntropyLoss,
    TrajectoryLoss,
    TruncatedGeneralizedCrossEntropyLoss,
    TwoHotLoss,
)
from lossworks.verdict import borda_ranking


@pytest.fixture
def batch(generator):
    logits = 2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (6,), generator=generator)


def test_absolute_error_without_absolute_values_is_zero_for_any_logits(batch):
    logits, target = batch
    published = (one_hot(target, 5) - logits.softmax(dim=1)).sum(dim=1)
    assert_close(published, torch.zeros_like(published))
    assert (MeanAbsoluteErrorLoss(reduction="none")(logits, target) > 0.01).all()


def test_robust_log_loss_is_symmetric_over_labels_and_the_published_code_is_not(batch):
    logits, _ = batch
    a, every = 0.5, [torch.full((6,), label) for label in range(5)]

    def published(target):
        label = one_hot(target, 5)
        own = (logits.exp() * label).sum(dim=1) / logits.exp().sum(dim=1)
        rest = ((1 - label) * logits - logits.sum(dim=1, keepdim=True)).exp() + a
        return rest.sum(dim=1).log() / 4 - (a + own).log()

    ours = sum(RobustLogLoss(a, reduction="none")(logits, target) for target in every)
    assert_close(ours, torch.zeros_like(ours))
    assert sum(published(target) for target in every).std() > 0.1


def test_robust_log_loss_is_its_equation_summed_by_hand(batch):
    logits, target = batch
    p, a = logits.softmax(dim=1).tolist(), 0.1
    expected = [
        -np.log(a + row[y]) + sum(np.log(a + row[k]) for k in range(5) if k != y) / 4
        for row, y in zip(p, target.tolist(), strict=True)
    ]
    assert_close(RobustLogLoss(a, reduction="none")(logits, target), torch.tensor(expected, dtype=torch.float64))


def test_symmetric_cross_entropy_stays_finite_where_plain_exponentials_overflow():
    logits, target = torch.tensor([[0.0, 100.0]]), torch.tensor([0])
    published = (logits - logits[:, :1]).exp().sum(dim=1).log()
    assert published.isinf().all()
    assert_close(SymmetricCrossEntropyLoss(alpha=1.0, beta=0.0)(logits, target), torch.tensor(100.0))


def test_adaptive_lams_one_step_leaves_out_the_margin_as_published_and_exact_does_not(batch):
    logits, target = batch
    index = torch.arange(6)

    def lam(mode, margin):
        loss = AdaptiveLDRLoss(6, lam0=1.0, margin=margin, mode=mode)
        loss(logits, target, index=index)
        return loss.lam

    assert torch.equal(lam("one_step", 0.0), lam("one_step", 1.0))
    assert (lam("exact", 0.0) - lam("exact", 1.0)).abs().max() > 0.01


def test_uniform_noise_that_draws_from_all_classes_mislabels_fewer_rows_than_its_rate():
    labels = np.arange(20_000) % 4
    noisy = mislabel(labels, "symmetric", 0.6, 4, np.random.default_rng(0))
    assert (noisy != labels).mean() == pytest.approx(0.6 * 3 / 4, abs=0.02)


def test_a_row_below_the_truncation_comes_back_at_once_where_published_code_rests_it_for_rounds():
    loss = TruncatedGeneralizedCrossEntropyLoss(q=0.7, k=0.5)
    target, moved = torch.tensor([0]), []
    for own in (-1.0, 1.0):
        logits = torch.tensor([[own, 0.0]], requires_grad=True)
        loss(logits, target).backward()
        moved.append(bool(logits.grad.abs().sum() > 0))
    assert moved == [False, True]


def test_two_hot_is_exact_where_an_added_denominator_shifts_the_mean():
    values = torch.linspace(-0.99, 0.97, 9, dtype=torch.float64)
    grid = torch.linspace(-1, 1, 51, dtype=torch.float64)
    lower = ((values + 1) / 0.04).floor().long()
    weight = (grid[lower + 1] - values) / (grid[lower + 1] - grid[lower] + 1e-5)
    published = weight * grid[lower] + (1 - weight) * grid[lower + 1]
    loss = TwoHotLoss(-1.0, 1.0, num_bins=51)
    ours = (loss.target_probabilities(values) * grid).sum(dim=1)
    assert (published - values).abs().max() > 5e-6
    assert_close(ours, values, rtol=0, atol=1e-12)


def test_systems_that_tie_everywhere_have_equal_counts_in_any_order_unlike_ranks_by_argsort():
    scores = np.ones((3, 4))
    published = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0, kind="stable").sum(axis=1)
    assert published.tolist() == [0, 4, 8]
    assert borda_ranking(scores)[1].tolist() == [4, 4, 4]


def test_bi_tempered_smoothing_over_the_other_classes_is_ours_at_a_smaller_share(batch):
    logits, target = batch
    share, label = 0.2, one_hot(target, 5).double()
    published = (1 - 5 / 4 * share) * label + share / 4
    at_hand = BiTemperedLoss(0.8, 1.4, label_smoothing=5 / 4 * share, reduction="none")(logits, target)
    assert_close(at_hand, BiTemperedLoss(0.8, 1.4, reduction="none")(logits, published))


def test_tempered_softmax_sums_to_one_where_five_fixed_point_steps_do_not(generator):
    logits = 10 * torch.randn(50, 100, generator=generator, dtype=torch.float64)
    shifted = logits - logits.amax(dim=1, keepdim=True)
    scaled = shifted
    for _ in range(5):
        scaled = shifted / (1 / (1 - scaled)).sum(dim=1, keepdim=True)  # exp_2(u) = 1 / (1 - u)
    total = (1 / (1 - scaled)).sum(dim=1, keepdim=True)
    published = 1 / (1 - shifted + (total - 1))
    assert (published.sum(dim=1) - 1).abs().max() > 0.01
    ours = BiTemperedLoss(0.8, 2.0).predict(logits).sum(dim=1)
    assert_close(ours, torch.ones_like(ours), rtol=0, atol=1e-9)


def test_pseudo_huber_is_of_the_whole_rows_norm_and_not_of_each_number(generator):
    a, b = (torch.randn(4, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    c = 0.00054 * 12**0.5
    whole = ((a - b).square().sum(dim=1) + c**2).sqrt() - c
    by_number = (((a - b).square() + c**2).sqrt() - c).mean(dim=1)
    assert_close(PseudoHuberLoss(reduction="none")(a, b), whole)
    assert (by_number - whole).abs().min() > 0.1


def test_the_logarithm_of_a_softmax_that_rounds_to_zero_has_no_gradient():
    before, now = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 600.0]], requires_grad=True)
    published = torch.nn.functional.kl_div(
        (now / 5).softmax(dim=1).log(), (before / 5).softmax(dim=1), reduction="none"
    ).sum()
    assert published.isinf()
    assert torch.autograd.grad(published, now)[0].isnan().any()
    loss, target, index = TrajectoryLoss(1, 2, lag_epochs=1), torch.tensor([1]), torch.tensor([0])
    loss(before, target, index=index)
    value = loss(now, target, index=index)
    assert value.isfinite()
    assert torch.autograd.grad(value, now)[0].isfinite().all()
