import math

import pytest
import torch
from scipy.stats import entropy
from torch.nn.functional import cross_entropy, kl_div
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss, PredictionEntropyLoss, SmoothingConsistencyLoss


@pytest.fixture
def copies(generator):
    """Logits of three copies of seven rows, and the rows' classes."""
    logits = 2 * torch.randn(7, 3, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(4, (7,), generator=generator)


def test_equals_scipys_entropies_row_by_row(copies):
    logits, target = copies
    p = logits.softmax(dim=2).numpy()
    expected = []
    for row, y in zip(p, target.tolist(), strict=True):
        mean = row.mean(axis=0)
        apart = sum(entropy(mean, one) for one in row) / 3
        expected.append(sum(-math.log(one[y]) for one in row) / 3 + 2.5 * apart + 0.7 * entropy(mean))
    found = SmoothingConsistencyLoss(2.5, 0.7, reduction="none")(logits, target)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_its_divergence_is_that_of_published_code(copies):
    """Which asks torch for KL with the arguments the other way round: of the mean from each copy."""
    logits, target = copies
    mean = logits.softmax(dim=2).mean(dim=1)
    published = sum(kl_div(one.log_softmax(1), mean, reduction="none").sum(1) for one in logits.unbind(1)) / 3
    with_it, without = (SmoothingConsistencyLoss(lam, 0.0, reduction="none")(logits, target) for lam in (1.0, 0.0))
    assert_close(with_it - without, published)
    assert bool((published > 0).all())


def test_without_prices_it_is_the_mean_cross_entropy_of_the_copies(copies):
    logits, target = copies
    expected = cross_entropy(logits.flatten(0, 1), target.repeat_interleave(3))
    assert_close(SmoothingConsistencyLoss(0.0, 0.0)(logits, target), expected)


def test_copies_that_agree_leave_the_entropy_alone_however_they_are_shifted(copies):
    logits, target = copies
    same = logits[:, :1] + torch.tensor([0.0, 5.0, -3.0], dtype=torch.float64)[:, None]
    assert_close(SmoothingConsistencyLoss(9.0, 0.3)(same, target), PredictionEntropyLoss(0.3)(logits[:, 0], target))


def test_one_copy_is_a_row_like_any_other(copies):
    logits, target = copies
    loss = SmoothingConsistencyLoss()
    assert_close(loss(logits[:, :1], target), loss(logits[:, 0], target))
    assert_close(SmoothingConsistencyLoss(eta=0.0)(logits[:, 0], target), CrossEntropyLoss()(logits[:, 0], target))


def test_the_order_of_the_copies_does_not_matter_and_rows_do_not_see_each_other(copies):
    logits, target = copies
    each = SmoothingConsistencyLoss(reduction="none")
    assert_close(each(logits.flip(1), target), each(logits, target))
    assert_close(torch.cat([each(logits[i : i + 1], target[i : i + 1]) for i in range(7)]), each(logits, target))


def test_ignored_rows_and_weights_count_as_in_any_loss(copies):
    logits, target = copies
    target[2] = -100
    logits[2] = math.inf
    weight = torch.linspace(0, 1, 7, dtype=torch.float64)
    loss = SmoothingConsistencyLoss()
    with pytest.raises(ValueError, match="output has NaN in row 3"):
        loss(logits.masked_fill(torch.arange(7)[:, None, None] == 3, math.nan), target)
    logits[2] = 0.0
    each = SmoothingConsistencyLoss(reduction="none")(logits, target)
    kept = torch.arange(7) != 2
    assert each[2] == 0
    assert_close(loss(logits, target), each[kept].mean())
    expected = (each * weight)[kept].sum() / weight[kept].sum()
    assert_close(loss(logits, target, sample_weight=weight), expected)


def test_the_gradient_is_the_derivative_and_copies_stay_finite_at_extremes(copies):
    logits, target = copies
    assert torch.autograd.gradcheck(lambda z: SmoothingConsistencyLoss()(z, target), logits.requires_grad_())
    far = 1e4 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], requires_grad=True)
    value = SmoothingConsistencyLoss()(far, torch.tensor([0]))
    (slope,) = torch.autograd.grad(value, far)
    assert value.isfinite()
    assert slope.isfinite().all()
    half = SmoothingConsistencyLoss()(logits.detach().bfloat16(), target)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(("lam", "eta"), [(2.5, 0.7), (9.0, 3.0)])
@pytest.mark.parametrize("several", [True, False])
def test_a_class_masked_in_every_copy_is_as_if_it_were_not_there(copies, several, lam, eta):
    logits, target = copies if several else (copies[0][:, 0], copies[1])
    target = target.clamp(max=2)
    others = logits[..., :3].clone().requires_grad_()
    masked = logits.index_fill(-1, torch.tensor([3]), -math.inf).requires_grad_()
    loss = SmoothingConsistencyLoss(lam, eta, reduction="none")
    found, wanted = loss(masked, target), loss(others, target)
    assert_close(found, wanted)
    (slope,), (right,) = (torch.autograd.grad(each.sum(), leaf) for each, leaf in ((found, masked), (wanted, others)))
    assert_close(slope[..., :3], right)
    assert bool((slope[..., 3] == 0).all())


def test_a_label_masked_in_every_copy_and_a_class_masked_in_one_cost_infinitely_much(copies):
    logits, target = copies
    loss = SmoothingConsistencyLoss(reduction="none")
    everywhere = logits.index_fill(2, torch.tensor([3]), -math.inf)
    assert bool((loss(everywhere, torch.full_like(target, 3)) == math.inf).all())
    once = torch.cat([everywhere[:, :1], logits[:, 1:]], dim=1)
    assert bool((loss(once, target.clamp(max=2)) == math.inf).all())


def test_stacks_under_vmap(copies):
    logits, target = copies
    loss = SmoothingConsistencyLoss()
    together = torch.func.vmap(loss)(torch.stack([logits, -logits]), torch.stack([target, target]))
    assert_close(together, torch.stack([loss(logits, target), loss(-logits, target)]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SmoothingConsistencyLoss(-1.0), "lam"),
        (lambda: SmoothingConsistencyLoss(eta=-1.0), "eta"),
        (lambda: SmoothingConsistencyLoss()(torch.ones(2, 0, 3), torch.tensor([0, 1])), "output must have shape"),
        (lambda: SmoothingConsistencyLoss()(torch.ones(2, 4, 3), torch.tensor([0, 1, 2])), "target must have shape"),
        (lambda: SmoothingConsistencyLoss()(torch.ones(2, 4, 3), torch.tensor([0, 3])), "target must be in"),
        (lambda: SmoothingConsistencyLoss()(torch.ones(2, 4, 3), torch.tensor([0.0, 1.0])), "target"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
