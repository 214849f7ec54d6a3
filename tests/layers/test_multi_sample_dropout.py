from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.testing import assert_close

from lossworks.layers import MultiSampleDropout, multi_sample_dropout_loss
from lossworks.losses import CrossEntropyLoss, MeanAbsoluteErrorLoss


@pytest.fixture
def batch(generator):
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    return nn.Linear(4, 3).double(), x, torch.randint(3, (6,), generator=generator)


def test_one_draw_is_torchs_dropout_from_the_same_state(batch):
    head, x, _ = batch
    torch.manual_seed(3)
    wanted = head(dropout(x, 0.3))
    torch.manual_seed(3)
    assert torch.equal(MultiSampleDropout(head, 1, 0.3)(x)[0], wanted)


def test_without_dropping_every_draw_is_the_head(batch):
    head, x, target = batch
    output = MultiSampleDropout(head, 5, 0.0)(x)
    assert_close(output, head(x).expand(5, 6, 3))
    assert_close(multi_sample_dropout_loss(output, target, CrossEntropyLoss()), cross_entropy(head(x), target))


def test_evaluation_is_the_head_whatever_the_draws(batch):
    head, x, _ = batch
    assert torch.equal(MultiSampleDropout(head, 7).eval()(x), head(x))


@pytest.mark.parametrize("draws", [1, 4])
def test_expectation_is_that_over_all_masks_and_variance_falls_with_the_draws(batch, draws):
    head, x, target = batch
    row, label, p = x[:1], target[:1], 0.4
    values, chances = [], []
    for kept in product((0.0, 1.0), repeat=4):
        mask = torch.tensor(kept, dtype=torch.float64)
        values.append(cross_entropy(head(row * mask / (1 - p)), label))
        chances.append((1 - p) ** sum(kept) * p ** (4 - sum(kept)))
    values, chances = torch.stack(values).detach(), torch.tensor(chances, dtype=torch.float64)
    expected = (chances * values).sum()
    variance = (chances * (values - expected).square()).sum() / draws
    trials = 20_000
    layer = MultiSampleDropout(head, draws, p, generator=torch.Generator().manual_seed(1))
    many = multi_sample_dropout_loss(
        layer(row.expand(trials, 4)), label.expand(trials), CrossEntropyLoss(reduction="none")
    ).detach()
    assert abs(many.mean() - expected) < 4 * (variance / trials).sqrt()
    assert many.var().item() == pytest.approx(variance.item(), rel=0.06)


def test_is_the_mean_of_the_draws_losses_and_above_the_loss_of_mean_logits(batch):
    head, x, target = batch
    output = MultiSampleDropout(head, 8, generator=torch.Generator().manual_seed(0))(x)
    loss = CrossEntropyLoss(reduction="none")
    found = multi_sample_dropout_loss(output, target, loss)
    assert_close(found, torch.stack([loss(draw, target) for draw in output]).mean(dim=0))
    assert (found >= loss(output.mean(dim=0), target)).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_rows_weights_and_micro_batches_count_as_in_the_loss(batch, reduction):
    head, x, target = batch
    target[2] = -100
    weight = torch.arange(1.0, 7.0, dtype=torch.float64)
    output = MultiSampleDropout(head, 3)(x)
    loss = MeanAbsoluteErrorLoss(reduction=reduction)
    wanted = torch.stack([loss(draw, target, sample_weight=weight) for draw in output]).mean()
    assert_close(multi_sample_dropout_loss(output, target, loss, sample_weight=weight), wanted)
    total = loss.total_of(target, weight)
    parts = [
        multi_sample_dropout_loss(output[:, rows], target[rows], loss, sample_weight=weight[rows], total=total)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    assert_close(sum(parts), wanted)


def test_p_may_be_a_tensor_and_masks_come_from_the_generator(batch):
    _, x, _ = batch
    p = torch.tensor(0.3, dtype=torch.float64)
    draws = [MultiSampleDropout(nn.Identity(), 50, p, generator=torch.Generator().manual_seed(5))(x) for _ in range(2)]
    assert torch.equal(*draws)
    assert_close(torch.where(draws[0] == 0, x, draws[0] * 0.7), x.expand(50, 6, 4))
    assert 0.25 < (draws[0] == 0).double().mean() < 0.35


def test_bad_arguments_are_named(batch):
    head, x, target = batch
    with pytest.raises(TypeError, match="head must be a module"):
        MultiSampleDropout(None)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\)"):
        MultiSampleDropout(head, p=1.0)
    with pytest.raises(ValueError, match="num_samples must be >= 1"):
        MultiSampleDropout(head, 0)
    with pytest.raises(ValueError, match="head must give an output for each of 48 rows"):
        MultiSampleDropout(nn.Flatten(0))(x)
    with pytest.raises(ValueError, match="target must have one entry for each of 6 rows"):
        multi_sample_dropout_loss(head(x).expand(2, 6, 3), target[:5], CrossEntropyLoss())
    with pytest.raises(TypeError, match="loss must be a lossworks Loss"):
        multi_sample_dropout_loss(head(x).expand(2, 6, 3), target, nn.CrossEntropyLoss())


@pytest.mark.parametrize("p", [0.5, torch.tensor(0.5)])
def test_under_vmap_each_example_has_masks_of_its_own(p):
    layer = MultiSampleDropout(nn.Identity(), 3, p)
    found = torch.vmap(layer, randomness="different")(torch.ones(4, 2, 50))
    assert found.shape == (4, 3, 2, 50)
    assert set(found.flatten().tolist()) == {0.0, 2.0}
    assert len({tuple(mask.flatten().tolist()) for mask in found}) == 4
