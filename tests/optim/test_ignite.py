import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.optim import IGNITE


@pytest.fixture
def surrogate():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()


@pytest.fixture
def x(generator):
    return torch.randn(10, 3, generator=generator, dtype=torch.float64)


def test_the_difference_is_the_gradient_of_the_norm(surrogate, x):
    twin = copy.deepcopy(surrogate)
    optimizer = IGNITE(torch.optim.SGD(surrogate.parameters(), lr=0.1), surrogate, "fixed", lam=0.7, rho=0.3, r=1e-5)
    price = optimizer.price(x)
    slope = torch.autograd.grad(twin(x).mean(), list(twin.parameters()), create_graph=True)
    norm = torch.cat([g.flatten() for g in slope]).norm()
    (0.7 * 0.3 * norm).backward()
    assert_close(price, 0.3 * norm.detach())
    for own, other in zip(surrogate.parameters(), twin.parameters(), strict=True):
        expected = torch.zeros_like(own) if other.grad is None else other.grad
        assert_close(own.grad, expected, rtol=1e-3, atol=1e-6)
        assert torch.equal(own, other)


def test_without_a_multiplier_it_is_plain_training(surrogate, x):
    twin = copy.deepcopy(surrogate)
    optimizer = IGNITE(torch.optim.Adam(surrogate.parameters(), lr=0.1), surrogate, "fixed", lam=0.0)
    plain = torch.optim.Adam(twin.parameters(), lr=0.1)
    for m, o in ((surrogate, optimizer), (twin, plain)):
        for _ in range(3):
            o.zero_grad()
            m(x).square().mean().backward()
            if o is optimizer:
                o.price(x)
            o.step()
    assert_close(surrogate[0].weight, twin[0].weight, rtol=0, atol=0)


def test_a_mean_that_is_linear_in_the_weights_has_no_price_to_descend(x):
    model = nn.Linear(3, 1).double()
    optimizer = IGNITE(torch.optim.SGD(model.parameters(), lr=0.1), model, "fixed")
    optimizer.price(x)
    assert_close(model.weight.grad, torch.zeros_like(model.weight), rtol=0, atol=1e-12)


def test_the_multiplier_follows_the_price_and_never_falls_below_zero(surrogate, x):
    rising = IGNITE(torch.optim.SGD(surrogate.parameters(), lr=0.1), surrogate, epsilon=1e-3, eta=0.5)
    price = float(rising.price(x))
    assert rising.lam == pytest.approx(1e-3 + 0.5 * (price - 1e-3))
    falling = IGNITE(torch.optim.SGD(surrogate.parameters(), lr=0.1), surrogate, epsilon=1e3, eta=0.5)
    falling.price(x)
    assert falling.lam == 0
    again = IGNITE(torch.optim.SGD(surrogate.parameters(), lr=0.1), surrogate)
    again.load_state_dict(rising.state_dict())
    assert again.lam == rising.lam


def test_a_surrogate_that_is_flat_has_no_price(x):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    for parameter in model.parameters():
        parameter.data.fill_(-1.0)
    model[0].bias.data.fill_(-100.0)
    model[2].bias.requires_grad_(False)
    optimizer = IGNITE(torch.optim.SGD(model.parameters(), lr=0.1), model, "fixed")
    assert float(optimizer.price(x)) == 0


def test_lowers_the_norm_that_it_prices(surrogate, x):
    def trained(lam):
        model = copy.deepcopy(surrogate)
        optimizer = IGNITE(torch.optim.Adam(model.parameters(), lr=0.02), model, "fixed", lam=lam, rho=0.2)
        y = x.sum(dim=1, keepdim=True)

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(60):
            optimizer.step(closure, x=x)
        return float(optimizer.price(x))

    assert trained(5.0) < trained(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "soft"}, "mode"),
        ({"lam": -1}, "lam"),
        ({"rho": 0}, "rho"),
        ({"r": 0}, "r must"),
        ({"epsilon": 0}, "epsilon"),
        ({"eta": -1}, "eta"),
        ({"model": 3}, "model"),
    ],
)
def test_bad_arguments_are_named(surrogate, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        IGNITE(torch.optim.SGD(surrogate.parameters()), **({"model": surrogate} | options))


def test_bad_rows_are_named(surrogate):
    optimizer = IGNITE(torch.optim.SGD(surrogate.parameters()), surrogate)
    with pytest.raises(ValueError, match="x must have rows"):
        optimizer.price(torch.ones(0, 3))
    with pytest.raises(ValueError, match="one number a row"):
        IGNITE(torch.optim.SGD(surrogate.parameters()), nn.Linear(3, 2).double()).price(torch.ones(4, 3).double())
