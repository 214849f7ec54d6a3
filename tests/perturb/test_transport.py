from itertools import pairwise

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.testing import assert_close

from lossworks.perturb import PricedAscent, wasserstein_robust_surrogate


@pytest.fixture
def x(generator):
    return torch.randn(5, 3, generator=generator, dtype=torch.float64)


def concave(z, y):
    return (3 * z - y[:, None]).sum(1) - 0.5 * z.square().sum(1)


def test_equals_the_supremum_in_closed_form(x):
    """Of a z - z^2 / 2 - gamma (z - x)^2, coordinate by coordinate."""
    y, gamma = torch.ones(5, dtype=torch.float64), 2.0
    best = (3 + 2 * gamma * x) / (1 + 2 * gamma)
    wanted = concave(best, y) - gamma * (best - x).square().sum(1)
    assert_close(wasserstein_robust_surrogate(concave, x, y, gamma, steps=200), wanted)


@pytest.mark.parametrize("cost", ["l2", "sq_l2"])
def test_equals_scipys_supremum_of_a_bounded_loss(cost):
    for start in (-0.7, 0.2, 0.9):
        found = wasserstein_robust_surrogate(
            lambda z, y: torch.sigmoid(-3 * z[:, 0]), torch.tensor([[start]]).double(), torch.ones(1), 0.6, cost, 400
        )

        def cost_of(z, start=start):
            moved = abs(z - start)
            return -float(torch.sigmoid(torch.tensor(-3.0 * z))) + 0.6 * (moved if cost == "l2" else moved**2)

        wanted = min(minimize_scalar(cost_of, bounds=(start - 3, start), method="bounded").fun, cost_of(start))
        assert found.item() == pytest.approx(-wanted, abs=2e-3)


def test_is_at_least_the_loss_falls_in_the_price_and_ends_at_the_loss(x):
    y = torch.ones(5, dtype=torch.float64)
    values = [wasserstein_robust_surrogate(concave, x, y, gamma, steps=100) for gamma in (1.0, 3.0, 10.0, 1e9)]
    assert all(bool((one >= other).all()) for one, other in pairwise(values))
    assert bool((values[-1] >= concave(x, y)).all())
    assert_close(values[-1], concave(x, y), atol=1e-6, rtol=0)


def test_its_gradient_is_that_at_the_point_found(x):
    theta, y = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), torch.ones(5)

    def value(theta):
        return wasserstein_robust_surrogate(lambda z, _: theta * z.sum(1), x, y, 2.0).sum()

    value(theta).backward()
    step = 1e-5
    wanted = (value(theta.detach() + step) - value(theta.detach() - step)) / (2 * step)
    assert_close(theta.grad, wanted)


def test_rows_may_have_prices_of_their_own(x):
    prices = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    together = PricedAscent().ascend(lambda z: z.sin().sum(1), x, prices)
    for row, price in enumerate(prices):
        alone = PricedAscent(float(price))(lambda z: z.sin().sum(1), x[row : row + 1])
        assert_close(alone[0], together[row])


def test_bad_arguments_are_named(x):
    for bad, name in (
        ({"gamma": 0.0}, "gamma"),
        ({"cost": "l1"}, "cost"),
        ({"lr": -1.0}, "lr"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(ValueError, match=name):
            PricedAscent(**bad)
    with pytest.raises(TypeError, match="loss_fn"):
        wasserstein_robust_surrogate(3, x, x)
    with pytest.raises(ValueError, match="loss_fn must give one number a row"):
        wasserstein_robust_surrogate(lambda z, y: z, x, x)
    with pytest.raises(ValueError, match="loss_fn must take x and y, which fails"):
        wasserstein_robust_surrogate(lambda z, y: z @ y[:1], x, x)
