import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from lossworks.losses import SquaredLoss
from lossworks.objectives import RSSObjective, ramp_loss
from lossworks.perturb import wasserstein_robust_surrogate


@pytest.fixture
def batch(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, -100, 2, -100, -100, 1, 0, -100, -100])
    return model, x, target


def by_hand(model, x, target, gamma, gamma_u, lam):
    """The two sums, each by the surrogate of its own rows."""

    def surrogate(rows, labels, price):
        return wasserstein_robust_surrogate(
            lambda z, y: cross_entropy(model(z), y, reduction="none"), rows, labels, price
        ).mean()

    own = target == -100
    answers = model(x[own]).argmax(dim=1)
    return surrogate(x[~own], target[~own], gamma) + lam * surrogate(x[own], answers, gamma_u)


def test_is_the_two_robust_means(batch):
    model, x, target = batch
    value = RSSObjective(2.0, 7.0, 0.3)(model, x, target)
    assert_close(value, by_hand(model, x, target, 2.0, 7.0, 0.3))
    got = torch.autograd.grad(value, list(model.parameters()))
    assert_close(got, torch.autograd.grad(by_hand(model, x, target, 2.0, 7.0, 0.3), list(model.parameters())))


def test_without_unlabelled_rows_or_their_price_it_is_supervised(batch):
    model, x, target = batch
    kept = target != -100
    supervised = RSSObjective(2.0)(model, x[kept], target[kept])
    assert_close(RSSObjective(2.0, lam=0.0)(model, x, target), supervised)


def test_a_price_without_end_is_self_training(batch):
    model, x, target = batch
    answers = torch.where(target == -100, model(x).argmax(dim=1), target)
    losses = cross_entropy(model(x), answers, reduction="none")
    plain = losses[target != -100].mean() + losses[target == -100].mean()
    assert_close(RSSObjective(1e9)(model, x, target), plain, atol=1e-6, rtol=0)


def test_labels_again_without_labels_count_lam_more(batch):
    model, x, _ = batch
    target = model(x).argmax(dim=1)
    twice = RSSObjective(2.0, lam=0.4)(model, torch.cat([x, x]), torch.cat([target, torch.full_like(target, -100)]))
    assert_close(twice, 1.4 * RSSObjective(2.0)(model, x, target))


def test_the_ramp_is_the_supremum_over_a_grid(generator):
    theta = normalize(torch.randn(2, generator=generator, dtype=torch.float64), dim=0)
    x = 2 * torch.randn(8, 2, generator=generator, dtype=torch.float64)
    moves = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    for cost, price in (("l2", moves.abs()), ("sq_l2", moves.square())):
        margin = x @ theta
        wrong = (margin[:, None] + moves <= 0).double()
        wanted = (wrong - 0.6 * price).amax(dim=1)
        assert_close(ramp_loss(margin, 0.6, cost), wanted, atol=5e-4, rtol=0)


def test_bad_arguments_are_named(batch):
    model, x, target = batch
    for bad, error, name in (
        ({"gamma": -1.0}, ValueError, "gamma"),
        ({"gamma_u": 0.0}, ValueError, "gamma_u"),
        ({"lam": -1.0}, ValueError, "lam"),
        ({"loss": SquaredLoss()}, TypeError, "loss"),
    ):
        with pytest.raises(error, match=name):
            RSSObjective(**bad)
    with pytest.raises(ValueError, match="target must be in"):
        RSSObjective()(model, x, target + 3)
