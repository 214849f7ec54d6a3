"""The selectors of noisy rows, and the weights of their pseudo-labels."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import norm
from torch.testing import assert_close

from lossworks.select import AlternatingSelector, LinearSeparationSelector, SmallLossGMMSelector, pseudo_loss_weights
from lossworks.select.pseudo_loss import check_noisy


@pytest.fixture
def losses():
    """180 small losses and 60 large ones."""
    draw = torch.Generator().manual_seed(0)
    clean = 0.5 + 0.15 * torch.randn(180, generator=draw, dtype=torch.float64)
    return torch.cat([clean, 3 + 0.3 * torch.randn(60, generator=draw, dtype=torch.float64)])


@pytest.fixture
def features():
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(240, 6, generator=draw, dtype=torch.float64)
    rows[180:, 0] += 3
    rows[:180, 1] += 3
    return rows


def test_two_well_separated_modes_are_recovered_exactly(losses):
    noisy = SmallLossGMMSelector()(losses)
    assert not noisy[:180].any()
    assert noisy[180:].all()


def test_agrees_with_the_most_likely_mixture_found_by_scipy(losses):
    draw = torch.Generator().manual_seed(2)
    mixed = torch.cat([losses, 1 + 1.5 * torch.rand(20, generator=draw, dtype=torch.float64)])
    scaled = ((mixed - mixed.min()) / (mixed.max() - mixed.min())).numpy()

    def parts(parameters):
        share, low, high, low_log, high_log = parameters
        share = 1 / (1 + np.exp(-share))
        return share * norm.pdf(scaled, high, np.exp(high_log)), (1 - share) * norm.pdf(scaled, low, np.exp(low_log))

    found = minimize(lambda p: -np.log(sum(parts(p))).sum(), [-1, 0.2, 0.8, -2, -2], method="Nelder-Mead").x
    high, low = parts(found)
    assert np.abs(SmallLossGMMSelector().probability(mixed).numpy() - high / (high + low)).mean() < 0.02


def test_neither_scale_nor_order_of_the_losses_matters(losses):
    probability = SmallLossGMMSelector().probability(losses)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(3))
    assert_close(SmallLossGMMSelector().probability(7 * losses + 5), probability)
    assert_close(SmallLossGMMSelector().probability(losses[order]), probability[order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "constant", [torch.zeros(0), torch.ones(1), torch.full((5,), 2.0), torch.full((2,), torch.inf)]
)
def test_losses_without_two_modes_are_all_clean(constant):
    assert not SmallLossGMMSelector()(constant).any()


def test_an_infinite_loss_counts_as_the_largest(losses):
    infinite = losses.clone()
    infinite[-1] = torch.inf
    assert torch.equal(SmallLossGMMSelector()(infinite), SmallLossGMMSelector()(losses))


def test_the_plane_separates_what_the_trusted_rows_say(features):
    trusted = torch.arange(240) >= 180
    wrong = trusted.clone()
    wrong[[0, 1, 190]] ^= True
    noisy, probability = LinearSeparationSelector()(features, wrong)
    assert (noisy == trusted).double().mean() > 0.95
    assert torch.equal(noisy, probability > 0.5)


def test_the_plane_is_the_best_by_a_plain_newton_iteration(features):
    trusted = torch.rand(240, generator=torch.Generator().manual_seed(4)) < features[:, 0].sigmoid()
    u = features / features.norm(dim=1, keepdim=True)
    u = torch.cat([(u - u.mean(0)) / u.std(0, correction=0), torch.ones(240, 1, dtype=u.dtype)], dim=1)
    balance = torch.where(trusted, 120 / trusted.sum(), 120 / (~trusted).sum()).double()
    plane = torch.zeros(7, dtype=torch.float64)
    for _ in range(20):
        p = (u @ plane).sigmoid()
        slope = u.T @ (balance * (p - trusted.double()))
        plane -= torch.linalg.solve(u.T @ (u * (balance * p * (1 - p))[:, None]), slope)
    assert_close(LinearSeparationSelector()(features, trusted)[1], (u @ plane).sigmoid(), atol=2e-3, rtol=0)


def test_without_lengths_the_scale_of_a_feature_does_not_matter(features):
    trusted = torch.rand(240, generator=torch.Generator().manual_seed(4)) < features[:, 0].sigmoid()
    selector = LinearSeparationSelector(normalize=False)
    scaled = features * torch.tensor([1e-200, 10, 100, 0.5, 3, 7e200], dtype=torch.float64)
    assert_close(selector(scaled, trusted)[1], selector(features, trusted)[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [True, False])
def test_a_trusted_split_of_one_side_comes_back(features, side):
    trusted = torch.full((240,), side)
    noisy, probability = LinearSeparationSelector()(features, trusted)
    assert torch.equal(noisy, trusted)
    assert torch.equal(probability, trusted.double())


def test_takes_the_rules_by_turns(losses, features):
    by_loss = SmallLossGMMSelector()(losses)
    by_plane = LinearSeparationSelector()(features, by_loss)[0]
    assert not torch.equal(by_loss, by_plane)
    turns = AlternatingSelector()
    for epoch in range(4):
        assert torch.equal(turns(epoch, losses, features), by_loss if epoch % 2 else by_plane)
    for epoch in range(3):
        assert torch.equal(AlternatingSelector(order=("loss",))(epoch, losses), by_loss)
        assert torch.equal(AlternatingSelector(order=("linear",))(epoch, losses, features), by_plane)


def test_weights_are_1_for_clean_rows_and_shares_for_noisy_ones(losses):
    noisy = torch.rand(240, generator=torch.Generator().manual_seed(5)) < 0.5
    losses[~noisy] = torch.nan
    weights = pseudo_loss_weights(losses, noisy)
    assert (weights[~noisy] == 1).all()
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[:180] > 0.99).all()
    assert (weights[180:][noisy[180:]] < 0.01).all()
    assert_close(weights[noisy], 1 - SmallLossGMMSelector().probability(losses[noisy]))


def test_a_pair_of_noisy_rows_weighs_1():
    assert (pseudo_loss_weights(torch.tensor([1.0, 9.0, 2.0]), torch.tensor([True, True, False])) == 1).all()


def test_says_what_is_wrong(losses, features):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        SmallLossGMMSelector(1.0)
    with pytest.raises(ValueError, match="losses must be numbers or inf, got nan in row 1"):
        SmallLossGMMSelector()(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="losses must have shape"):
        SmallLossGMMSelector()(losses[None])
    with pytest.raises(TypeError, match="trusted_noisy must be bool"):
        LinearSeparationSelector()(features, losses)
    with pytest.raises(ValueError, match="features must be finite, got NaN or Inf in row 2"):
        LinearSeparationSelector()(features.index_fill(0, torch.tensor([2]), torch.inf), losses > 1)
    with pytest.raises(ValueError, match="features must be given in epoch 0"):
        AlternatingSelector()(0, losses)
    with pytest.raises(ValueError, match="order must be one of 'linear', 'loss'"):
        AlternatingSelector(order=("liner",))
    with pytest.raises(ValueError, match="noisy must have one bool a row"):
        pseudo_loss_weights(losses, torch.ones(3, dtype=torch.bool))


def test_a_mask_of_another_length_names_what_it_stands_beside():
    with pytest.raises(ValueError, match=r"noisy must have one bool a row of losses \(3,\), got \(2,\)"):
        check_noisy("noisy", torch.zeros(2, dtype=torch.bool), ("losses", torch.zeros(3)))
