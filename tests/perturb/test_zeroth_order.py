import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.perturb import zeroth_order, zo_gradient


@pytest.fixture
def z(generator):
    return torch.randn(4, 6, generator=generator, dtype=torch.float64)


def test_coordinates_are_exact_on_a_quadratic_for_any_step(z, generator):
    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    for mu in (0.01, 1.0, 10.0):
        assert_close(zo_gradient(lambda x: ((x @ a) * x).sum(1), z, "cge", mu), z @ (a + a.T))


def test_random_directions_are_unbiased_on_a_linear_function_with_the_error_of_theory(generator):
    g, q = torch.randn(6, generator=generator, dtype=torch.float64), 3
    many = torch.zeros(40_000, 6, dtype=torch.float64)
    found = zo_gradient(lambda x: x @ g, many, "rge", 0.5, q, generator)
    assert_close(found.mean(0), g, atol=0.05, rtol=0)
    error = (found - g).square().sum(1).mean()
    assert error.item() == pytest.approx(float((6 - 1) / q * g.square().sum()), rel=0.03)


def test_published_averaging_over_coordinates_is_d_times_too_small(z):
    mu = 0.1
    units = mu * torch.eye(6, dtype=torch.float64)
    each = [(z + u).sin().sum(1) - (z - u).sin().sum(1) for u in units]
    published = torch.stack([d[:, None] / (2 * mu) * u / mu for d, u in zip(each, units, strict=True)]).mean(0)
    assert_close(6 * published, zo_gradient(lambda x: x.sin().sum(1), z, "cge", mu))


def test_the_bridge_gives_the_jacobian_times_the_estimate(z):
    torch.manual_seed(0)
    layer, box = nn.Linear(6, 3).double(), nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()

    def f(code):
        return box(code).square().sum(1)

    values = zeroth_order(f, layer(z), "cge", 1e-5)
    assert_close(values, f(layer(z)))
    got = torch.autograd.grad(values.mean(), list(layer.parameters()))
    assert_close(got, torch.autograd.grad(f(layer(z)).mean(), list(layer.parameters())), atol=1e-8, rtol=1e-6)
    zeroth_order(f, layer(z), "cge").sum().backward()
    assert all(parameter.grad is None for parameter in box.parameters())


def test_asks_as_often_as_it_says(z, generator):
    asked = 0

    def f(x):
        nonlocal asked
        asked += 1
        return x.sum(1)

    for ask, method, wanted in (
        (zo_gradient, "rge", 5 + 1),
        (zo_gradient, "cge", 2 * 6),
        (zeroth_order, "rge", 5 + 1),
        (zeroth_order, "cge", 2 * 6 + 1),
    ):
        asked = 0
        ask(f, z, method, q=5, generator=generator)
        assert asked == wanted, (ask.__name__, method)


def test_stacks_under_vmap_even_if_the_function_leaves_torch(z):
    def f(x):
        return torch.from_numpy((x.numpy() ** 2).sum(1))

    stack = torch.stack([z, 2 * z])
    slopes = torch.func.vmap(torch.func.grad(lambda x: zeroth_order(f, x, "cge").sum()))(stack)
    assert_close(slopes, 2 * stack)


def test_bad_arguments_are_named(z):
    def f(x):
        return x.sum(1)

    for bad, error, name in (
        ({"mu": 0.0}, ValueError, "mu"),
        ({"q": 0}, ValueError, "q"),
        ({"method": "fd"}, ValueError, "method"),
        ({"f": 3}, TypeError, "f must"),
        ({"f": lambda x: x}, ValueError, "f must give one number a row"),
        ({"f": lambda x: 3}, TypeError, "what f gives must be a tensor, got int"),
        ({"f": lambda x: x @ x}, ValueError, "f must take rows of shape .* which fails"),
    ):
        with pytest.raises(error, match=name):
            zo_gradient(**{"f": f, "z": z, **bad})
