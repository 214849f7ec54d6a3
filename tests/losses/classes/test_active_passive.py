from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import (
    ActivePassiveLoss,
    AsymmetricGeneralizedCrossEntropyLoss,
    AsymmetricUnhingedLoss,
    GeneralizedCrossEntropyLoss,
    HingeLoss,
    MeanAbsoluteErrorLoss,
    NormalizedCrossEntropyLoss,
    ReverseCrossEntropyLoss,
)


@pytest.fixture
def batch(generator):
    return 2 * torch.randn(20, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (20,), generator=generator
    )


def label_probability(logits, target):
    return logits.softmax(1)[torch.arange(len(target)), target]


def over_labels(loss, logits):
    return torch.stack([loss(logits, torch.full((len(logits),), k)) for k in range(logits.shape[1])])


def test_normalized_cross_entropy_is_its_share_of_all_labels(batch):
    logits, target = batch
    every = torch.stack([cross_entropy(logits, torch.full((20,), k), reduction="none") for k in range(5)])
    expected = cross_entropy(logits, target, reduction="none") / every.sum(0)
    assert_close(NormalizedCrossEntropyLoss(reduction="none")(logits, target), expected)


def test_normalized_cross_entropy_sums_to_one_over_labels(batch):
    each = over_labels(NormalizedCrossEntropyLoss(reduction="none"), batch[0])
    assert_close(each.sum(0), torch.ones(20, dtype=torch.float64))
    assert (each >= 0).all()


def test_normalized_cross_entropy_refuses_one_class():
    with pytest.raises(ValueError, match="at least 2 classes"):
        NormalizedCrossEntropyLoss()(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_reverse_cross_entropy_is_the_clipped_definition(batch):
    logits, target = batch
    log_label = torch.eye(5, dtype=torch.float64)[target].log().clamp(min=-7.0)
    expected = -(logits.softmax(1) * log_label).sum(1)
    assert_close(ReverseCrossEntropyLoss(-7.0, reduction="none")(logits, target), expected)


def test_reverse_cross_entropy_is_symmetric_over_labels(batch):
    summed = over_labels(ReverseCrossEntropyLoss(-4.0, reduction="none"), batch[0]).sum(0)
    assert_close(summed, torch.full((20,), 16.0, dtype=torch.float64))


@pytest.mark.parametrize(("a", "p"), [(1.5, 0.9), (6.0, 3.0), (3.0, 0.1)])
def test_asymmetric_unhinged_is_its_formula(batch, a, p):
    u = label_probability(*batch)
    expected = ((a - u) ** p - (a - 1) ** p) / p
    assert_close(AsymmetricUnhingedLoss(a, p, reduction="none")(*batch), expected)


@pytest.mark.parametrize(("a", "q"), [(1.0, 2.0), (0.6, 0.6), (4.0, 0.2)])
def test_asymmetric_generalized_is_its_formula(batch, a, q):
    u = label_probability(*batch)
    expected = ((a + 1) ** q - (a + u) ** q) / q
    assert_close(AsymmetricGeneralizedCrossEntropyLoss(a, q, reduction="none")(*batch), expected)


def test_asymmetric_losses_with_exponent_one_are_half_the_absolute_error(batch):
    half = MeanAbsoluteErrorLoss()(*batch) / 2
    assert_close(AsymmetricUnhingedLoss(3.0, 1.0)(*batch), half)
    assert_close(AsymmetricGeneralizedCrossEntropyLoss(3.0, 1.0)(*batch), half)


def test_vanishing_a_is_the_generalized_cross_entropy(batch):
    ours = AsymmetricGeneralizedCrossEntropyLoss(1e-12, 0.7)(*batch)
    assert_close(ours, GeneralizedCrossEntropyLoss(0.7)(*batch))


NOISY = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)


def noisy_minimiser(loss):
    """The grid point of the simplex where the risk under NOISY labels is least."""
    grid = torch.tensor([(i, j, 20 - i - j) for i, j in product(range(21), repeat=2) if i + j <= 20])
    logits = (grid.double() / 20).clamp(min=1e-30).log()
    return grid[(NOISY @ over_labels(loss, logits)).argmin()].tolist()


@pytest.mark.parametrize(
    "loss",
    [
        AsymmetricUnhingedLoss(1.5, 0.9, reduction="none"),
        AsymmetricGeneralizedCrossEntropyLoss(1.0, 2.0, reduction="none"),
        # (a / (a - 1))^(p - 1) and ((a + 1) / a)^(1 - q) just below 0.4 / 0.35
        AsymmetricUnhingedLoss(9.0, 2.0, reduction="none"),
        AsymmetricGeneralizedCrossEntropyLoss(4.0, 0.5, reduction="none"),
    ],
)
def test_asymmetric_losses_find_the_most_frequent_label_under_noise(loss):
    assert noisy_minimiser(loss) == [20, 0, 0]


@pytest.mark.parametrize(
    "loss",
    [
        AsymmetricUnhingedLoss(1.5, 2.0, reduction="none"),
        AsymmetricGeneralizedCrossEntropyLoss(0.1, 0.5, reduction="none"),
    ],
)
def test_asymmetric_losses_hedge_where_the_condition_fails(loss):
    assert noisy_minimiser(loss) != [20, 0, 0]


def test_pair_is_the_weighted_sum_of_its_two(batch):
    for active, passive in product(ActivePassiveLoss.names, repeat=2):
        ours = ActivePassiveLoss(active, passive, 2.0, 0.3, reduction="none")(*batch)
        first, second = (ActivePassiveLoss.names[name](reduction="none")(*batch) for name in (active, passive))
        assert_close(ours, 2.0 * first + 0.3 * second)


def test_pair_takes_losses_whatever_their_reduction(batch):
    pair = ActivePassiveLoss(AsymmetricUnhingedLoss(6.3, 1.5, reduction="sum"), MeanAbsoluteErrorLoss(), 0.5, 4.0)
    expected = 0.5 * AsymmetricUnhingedLoss(6.3, 1.5)(*batch) + 4.0 * MeanAbsoluteErrorLoss()(*batch)
    assert_close(pair(*batch), expected)


def test_pair_refuses_what_is_not_a_loss_on_classes():
    with pytest.raises(ValueError, match=r"passive must be a loss on classes.*HingeLoss"):
        ActivePassiveLoss("nce", HingeLoss())
    with pytest.raises(ValueError, match="did you mean 'agce'"):
        ActivePassiveLoss("nce", "gce")


@pytest.mark.parametrize("loss", [AsymmetricUnhingedLoss, AsymmetricGeneralizedCrossEntropyLoss])
def test_whole_settings_are_read_as_floats(loss, batch):
    assert_close(loss(5, 32)(*batch), loss(5.0, 32.0)(*batch))  # 4 ** 32 does not fit 64 bits


@pytest.mark.parametrize(
    "make",
    [
        lambda: AsymmetricUnhingedLoss(a=1.0),
        lambda: AsymmetricUnhingedLoss(p=0.0),
        lambda: AsymmetricUnhingedLoss(a=5.0, p=1000.0),
    ],
)
def test_asymmetric_unhinged_refuses_bad_shapes(make):
    with pytest.raises(ValueError, match=r"(a|p) must be"):
        make()
