"""What a worst-case weighting solves has derivatives: in the losses, in its numbers, twice, and in forward mode."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lossworks.weights import KLDRO, ChiSquareDRO, CVaR

FORMS = {
    "temperature": (lambda number: KLDRO(temperature=number), 0.7),
    "kl radius": (lambda number: KLDRO(radius=number), 0.3),
    "chi-square radius": (lambda number: ChiSquareDRO(number), 0.4),
    "alpha": (lambda number: CVaR(number), 0.45),
    "smoothing": (lambda number: CVaR(0.45, number), 0.4),
    "alpha, smoothed": (lambda number: CVaR(number, 0.4), 0.45),
}


@pytest.fixture
def losses(generator):
    return 3 * torch.rand(7, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", [0, 1, 2], ids=["value", "weights", "dual"])
def test_first_and_second_derivatives_are_those_of_differences(form, part, losses):
    make, number = FORMS[form]
    inputs = (losses.requires_grad_(), torch.tensor(number, dtype=torch.float64, requires_grad=True))

    def solved(losses, number):
        return make(number).solve(losses)[part]

    assert gradcheck(solved, inputs)
    assert gradgradcheck(solved, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_and_hessians_agree_with_backward_mode(form, losses):
    make, number = FORMS[form]
    at = torch.tensor(number, dtype=torch.float64)

    def value(number):
        return make(number).solve(losses).value

    learned = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(learned), learned, create_graph=True)
    bend = torch.autograd.grad(slope, learned)[0] if slope.requires_grad else torch.zeros(())
    assert_close(torch.func.jvp(value, (at,), (torch.ones_like(at),))[1], slope.detach())
    assert_close(torch.func.hessian(value)(at), bend, check_dtype=False)


@pytest.mark.parametrize("form", FORMS)
def test_the_slope_of_the_value_in_a_loss_is_its_weight_over_the_number_of_rows(form, losses):
    make, number = FORMS[form]
    value, weights, _ = make(number).solve(losses.requires_grad_())
    (slope,) = torch.autograd.grad(value, losses)
    assert_close(slope, weights.detach() / 7)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_with_derivatives_give_what_floats_give(form, losses):
    make, number = FORMS[form]
    learned = make(torch.tensor(number, dtype=torch.float64, requires_grad=True)).solve(losses)
    for with_derivatives, plain in zip(learned, make(number).solve(losses), strict=True):
        assert_close(with_derivatives.detach(), plain, rtol=1e-9, atol=1e-12)
