"""The shared closed forms equal the algebra that they stand for, to the second derivative and under every transform."""

import pytest
import torch
from torch.testing import assert_close

from lossworks.losses._rows import in_blocks, surprise_and_total, whole_number
from lossworks.losses.classes.asymmetric import _price, _price_and_slope


@pytest.fixture
def rows(generator):
    return torch.randn(6, 5, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 4, 4, 3])


def ours(output, target):
    own, total = surprise_and_total(output, target)
    return (own.square() + torch.sin(total) / own).sum()


def spelled_out(output, target):
    surprise = -output.log_softmax(dim=1)
    own = surprise.gather(1, target[:, None]).squeeze(1)
    return (own.square() + torch.sin(surprise.sum(dim=1)) / own).sum()


def test_value_and_gradient_equal_the_algebra(rows):
    output, target = rows
    mine, theirs = (torch.func.grad_and_value(f)(output, target) for f in (ours, spelled_out))
    assert_close(mine, theirs)


def test_second_derivatives_forward_and_backward_mode_equal_the_algebra(rows):
    output, target = rows
    assert_close(torch.func.hessian(ours)(output, target), torch.func.hessian(spelled_out)(output, target))
    leaf = output.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: ours(z, target), leaf)


def test_stacked_gradients_equal_those_one_by_one(rows):
    output, target = rows
    stacked = torch.func.vmap(torch.func.grad(ours), in_dims=(0, None))(torch.stack([output, 2 * output]), target)
    assert_close(stacked, torch.stack([torch.func.grad(spelled_out)(x, target) for x in (output, 2 * output)]))


def test_blocks_equal_one_pass(generator):
    x = torch.randn(700, 1000, generator=generator)
    for blocked, whole in zip(in_blocks(lambda z: (z.exp(), z.sum(dim=1)), x), (x.exp(), x.sum(dim=1)), strict=True):
        assert_close(blocked, whole, atol=0, rtol=0)
    (empty,) = in_blocks(lambda z: (2 * z,), x[:0])
    assert empty.shape == (0, 1000)


@pytest.mark.parametrize(("gamma", "clip"), [(4.0, 0.05), (0.0, 0.0), (1.0, 0.2)])
def test_the_asymmetric_price_has_its_derivatives(generator, gamma, clip):
    score = 3 * torch.randn(40, dtype=torch.float64, generator=generator)
    leaf = score.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: _price(z, gamma, clip), leaf)
    assert torch.autograd.gradgradcheck(lambda z: _price(z, gamma, clip), leaf)
    (slope,) = torch.autograd.grad(_price_and_slope(leaf, gamma, clip)[0].sum(), leaf)
    assert_close(_price_and_slope(score, gamma, clip)[1], slope)


def test_the_asymmetric_price_stays_finite_far_out():
    score = torch.tensor([-1e4, 0.0, 30.0, 1e4], requires_grad=True)
    for clip in (0.0, 1e-9, 0.05):
        price = _price(score, 2.0, clip)
        (slope,) = torch.autograd.grad(price.sum(), score)
        assert price.isfinite().all()
        assert slope.isfinite().all()
    assert_close(_price(score, 0.0, 0.0), torch.nn.functional.softplus(score))


@pytest.mark.parametrize(
    ("number", "whole"), [(0.0, 0), (1.0, 1), (0.3 / 0.1, 3), (3 + 1e-9, None), (2.5, None), (-1.0, None), (1e9, None)]
)
def test_a_small_whole_number_is_known_up_to_rounding(number, whole):
    assert whole_number(number) == whole
