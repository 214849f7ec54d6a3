import math

import pytest
import torch
from torch.testing import assert_close

from lossworks.losses import PseudoHuberLoss


@pytest.fixture
def rows(generator):
    return (torch.randn(6, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2))


def test_is_the_rounded_norm_of_the_whole_row(rows):
    a, b = rows
    norm = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
    assert_close(PseudoHuberLoss(0.7, reduction="none")(a, b), torch.sqrt(norm**2 + 0.7**2) - 0.7)


def test_default_c_grows_with_the_root_of_the_row(rows):
    a, b = rows
    assert_close(PseudoHuberLoss()(a, b), PseudoHuberLoss(0.00054 * math.sqrt(12))(a, b))
    assert_close(PseudoHuberLoss()(a[:, 0, 0], b[:, 0, 0]), PseudoHuberLoss(0.00054)(a[:, 0, 0], b[:, 0, 0]))


def test_is_not_the_sum_of_elementwise_losses(rows):
    a, b = rows
    element = PseudoHuberLoss(0.7, reduction="none")(a.flatten(), b.flatten()).reshape(6, 12).sum(1)
    assert (PseudoHuberLoss(0.7, reduction="none")(a, b) < element).all()


def test_vanishing_c_is_the_norm(rows):
    a, b = rows
    norm = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
    assert_close(PseudoHuberLoss(1e-12, reduction="none")(a, b), norm)


def test_below_c_is_the_square_over_twice_c_in_float32():
    near = torch.tensor([1e-5, 1e-4])
    assert_close(PseudoHuberLoss(1.0, reduction="none")(near, torch.zeros(2)), near**2 / 2)


def test_gradient_is_zero_where_rows_are_equal():
    a = torch.ones(2, 3, requires_grad=True)
    PseudoHuberLoss()(a, torch.ones(2, 3)).backward()
    assert_close(a.grad, torch.zeros(2, 3))


def test_gradient_norm_stays_below_one(rows):
    a, b = rows
    a.requires_grad_()
    PseudoHuberLoss(reduction="sum")(a, b).backward()
    norm = torch.linalg.vector_norm(a.grad.flatten(1), dim=1)
    assert (norm < 1).all()
    assert (norm > 0.999).all()


def test_sample_weight_is_one_number_a_row(rows):
    a, b = rows
    weight = torch.arange(6, dtype=torch.float64)
    each = PseudoHuberLoss(reduction="none")(a, b)
    assert each.shape == (6,)
    assert_close(PseudoHuberLoss()(a, b, sample_weight=weight), (weight * each).sum() / weight.sum())


def test_what_does_not_fit_is_named():
    loss = PseudoHuberLoss()
    with pytest.raises(ValueError, match=r"target must have the shape of output, got \(2, 2\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="output has NaN in row 1"):
        loss(torch.tensor([[0.0, 0.0], [0.0, math.nan]]), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="c must be finite and > 0"):
        PseudoHuberLoss(0.0)


def test_the_loss_of_a_single_number_is_its_equation():
    output, target = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 0.5])
    gap = output - target
    assert_close(PseudoHuberLoss(c=0.3).per_sample(output, target), (gap.square() + 0.09).sqrt() - 0.3)
