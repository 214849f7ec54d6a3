"""Rows scaled to length 1: cosines of rows of any length, and nothing at 0."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.embed import FeatureSeparationLoss, infonce_loss, nt_xent_loss
from lossworks.losses import PseudoLabelSelectionLoss
from lossworks.roles import directions

TARGET = torch.tensor([0, 1, 0, 1, 2])


@pytest.fixture
def rows(generator):
    return torch.randn(5, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_torchs_to_the_last_bit(rows, dtype):
    rows = rows.to(dtype)
    assert torch.equal(directions(rows), F.normalize(rows, dim=-1))


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, -149, 127), (torch.float64, -1074, 1023)])
def test_no_length_is_too_small_or_too_large(dtype, least, most):
    unit = torch.tensor([[1.0, 1.0], [0.0, -1.0]], dtype=dtype)
    for exponent in (least, least + 20, -1, most - 1):
        assert_close(directions(unit * 2.0**exponent), F.normalize(unit, dim=-1))
    assert directions(torch.zeros(2, 0)).shape == (2, 0)


def test_derivatives_are_those_of_torch_and_0_at_0(rows):
    def through(function):
        return lambda given: (function(given) * torch.arange(4.0).double()).sin().sum()

    ours, theirs = through(directions), through(lambda given: F.normalize(given, dim=-1))
    assert_close(torch.func.hessian(ours)(rows), torch.func.hessian(theirs)(rows))
    nought = rows.clone()
    nought[1] = 0
    second = torch.func.hessian(ours)(nought)
    assert bool(second.isfinite().all())
    assert not bool(second[1].any())
    assert not bool(torch.func.grad(ours)(nought)[1].any())
    stacked = torch.stack([rows, nought])
    assert_close(torch.func.vmap(torch.func.grad(ours))(stacked)[1], torch.func.grad(ours)(nought))


@pytest.mark.parametrize(
    "loss",
    [
        lambda rows: FeatureSeparationLoss()(rows, TARGET),
        lambda rows: nt_xent_loss(rows, rows.flip(1)),
        lambda rows: infonce_loss(rows, rows.flip(1)).sum(),
        lambda rows: PseudoLabelSelectionLoss(contrast=1.0)(rows, TARGET, rows, rows.flip(1)),
    ],
)
@pytest.mark.parametrize("value", [0.0, 1e-200])
def test_a_row_of_zeros_has_no_slope_in_its_features(rows, loss, value):
    leaf = rows.clone()
    leaf[1] = value
    leaf.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient[[0, 2, 3, 4]].sum(), leaf)
    assert bool(gradient.isfinite().all())
    assert bool(second.isfinite().all())
    if value == 0:
        assert float(gradient[1].detach().abs().max()) < 10
