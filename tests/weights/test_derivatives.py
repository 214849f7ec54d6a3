"""The derivatives of the inner maxima, by finite differences: in hyperparameters and losses, forward and backward."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing import assert_close

from lossworks.weights import KLDRO, ChiSquareDRO, CompositionalEMA, CVaR, GroupDRO, TrimmedWeights

LEARNED = {
    "KLDRO-temperature": (lambda h: KLDRO(temperature=h), 0.7),
    "KLDRO-radius": (lambda h: KLDRO(radius=h), 0.3),
    "CVaR-alpha": (CVaR, 0.37),
    "CVaR-alpha-smoothed": (lambda h: CVaR(h, 0.3), 0.37),
    "CVaR-smoothing": (lambda h: CVaR(0.37, h), 0.3),
    "ChiSquareDRO-radius": (ChiSquareDRO, 0.4),
    "TrimmedWeights-ratio": (TrimmedWeights, 0.23),
}
PLAIN = [KLDRO(), KLDRO(radius=0.3), CVaR(0.3), CVaR(0.3, 0.2), ChiSquareDRO(), TrimmedWeights(0.23)]


@pytest.fixture
def losses(generator):
    return 3 * torch.rand(9, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("part", ["value", "weights"])
@pytest.mark.parametrize("name", LEARNED)
def test_a_tensor_hyperparameter_has_its_derivatives(losses, name, part):
    make, start = LEARNED[name]
    leaf = torch.tensor(start, dtype=torch.float64, requires_grad=True)

    def solved(number):
        return getattr(make(number).solve(losses), part)

    assert solved(leaf).requires_grad
    assert gradcheck(solved, leaf, check_forward_ad=True)
    assert gradgradcheck(solved, leaf)
    at, step = leaf.detach(), 1e-6
    slope = (solved(at + step) - solved(at - step)) / (2 * step)
    assert_close(torch.func.jvp(solved, (at,), (torch.ones_like(at),))[1], slope, rtol=1e-6, atol=1e-7)
    forward = torch.func.hessian(solved)(at)
    second = (torch.func.jacrev(solved)(at + step) - torch.func.jacrev(solved)(at - step)) / (2 * step)
    assert_close(forward, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", PLAIN, ids=str)
def test_the_value_has_its_derivatives_in_the_losses(losses, weighting):
    def value(rows):
        return weighting.solve(rows).value

    leaf = losses.clone().requires_grad_()
    assert gradcheck(value, leaf, check_forward_ad=True)
    assert gradgradcheck(value, leaf)
    wanted = weighting.solve(losses).weights / len(losses)  # by the envelope theorem
    assert_close(torch.func.grad(value)(losses), wanted)
    along = torch.linspace(-1, 1, 9, dtype=torch.float64)
    assert_close(torch.func.jvp(value, (losses,), (along,))[1], wanted @ along)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(value(forward_ad.make_dual(losses, along))).tangent
    assert_close(tangent, wanted @ along)


@pytest.mark.parametrize("weighting", [KLDRO(), KLDRO(radius=0.3), CVaR(0.3, 0.2), ChiSquareDRO()], ids=str)
def test_the_weights_of_a_solution_have_their_derivatives_in_the_losses(losses, weighting):
    leaf = losses.clone().requires_grad_()
    assert gradcheck(lambda rows: weighting.solve(rows).weights, leaf, check_forward_ad=True)
    assert gradgradcheck(lambda rows: weighting.solve(rows).weights, leaf)


def test_what_is_remembered_holds_no_graph_of_a_learned_number(losses):
    group, learned = torch.arange(9) % 2, torch.tensor(0.5, requires_grad=True)
    for weighting, columns in (
        (CompositionalEMA(temperature=learned), {}),
        (CompositionalEMA(momentum=learned), {}),
        (GroupDRO(2, step_size=learned), {"group": group}),
    ):
        for _ in range(2):
            (weighting(losses, **columns) * losses).sum().backward()
        held = {name: buffer for name, buffer in weighting.named_buffers() if buffer is not learned}
        assert not any(buffer.requires_grad for buffer in held.values())


@pytest.mark.parametrize("name", LEARNED)
def test_numbers_with_derivatives_give_what_floats_give(losses, name):
    make, number = LEARNED[name]
    learned = make(torch.tensor(number, dtype=torch.float64, requires_grad=True)).solve(losses)
    for with_derivatives, plain in zip(learned, make(number).solve(losses), strict=True):
        assert_close(with_derivatives.detach(), plain, rtol=1e-9, atol=1e-12)
