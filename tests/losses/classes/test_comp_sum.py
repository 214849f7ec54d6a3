import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import CompSumLoss, comp_sum_h_consistency_bound


@pytest.fixture
def batch(generator):
    return 3 * torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (32,), generator=generator
    )


def by_definition(logits, target, tau):
    """The sum over the other classes, composed with the outer function."""
    u = torch.stack([(z - z[y]).exp().sum() - 1 for z, y in zip(logits, target, strict=True)])
    return torch.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 1.7, 2.0, 3.5])
def test_equals_the_composed_sum(batch, tau):
    assert_close(CompSumLoss(tau, reduction="none")(*batch), by_definition(*batch, tau))


def test_named_members(batch):
    logits, target = batch
    prob = logits.softmax(1).gather(1, target[:, None])[:, 0]
    for tau, wanted in (
        (0.0, 1 / prob - 1),
        (1.0, cross_entropy(logits, target, reduction="none")),
        (1.7, (1 - prob**0.7) / 0.7),
        (2.0, 1 - prob),
    ):
        assert_close(CompSumLoss(tau, reduction="none")(logits, target), wanted)


@pytest.mark.parametrize("step", [1e-3, 1e-7, 1e-12, -1e-3, -1e-7, -1e-12])
def test_keeps_every_digit_near_cross_entropy(batch, step):
    logits, target = batch
    tau = 1 + step
    rate = np.longdouble(tau) - 1  # as the loss sees it: 1 + step is rounded
    nll = cross_entropy(logits, target, reduction="none").numpy().astype(np.longdouble)
    wanted = torch.from_numpy((-np.expm1(-rate * nll) / rate).astype(np.float64))
    assert_close(CompSumLoss(tau, reduction="none")(logits, target), wanted, atol=0, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_derivative_in_tau_also_at_one(batch, tau):
    loss = CompSumLoss(torch.tensor(tau, dtype=torch.float64, requires_grad=True))
    loss(*batch).backward()
    h = 1e-5
    numeric = (CompSumLoss(tau + h)(*batch) - CompSumLoss(abs(tau - h))(*batch)) / (2 * h)
    if tau == 0:
        numeric = (CompSumLoss(h)(*batch) - CompSumLoss(0.0)(*batch)) / h
    assert_close(loss.tau.grad, numeric, rtol=1e-3, atol=1e-6)


def test_gradient_in_closed_form(batch):
    logits, target = batch
    logits.requires_grad_()
    CompSumLoss(1.4, reduction="sum")(logits, target).backward()
    prob = logits.detach().softmax(1)
    label = torch.eye(5, dtype=torch.float64)[target]
    assert_close(logits.grad, prob.gather(1, target[:, None]) ** 0.4 * (prob - label))


def test_falls_with_tau_and_is_bounded_above_one(batch):
    values = torch.stack([CompSumLoss(tau, reduction="none")(*batch) for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 4.0)])
    assert (values.diff(dim=0) <= 0).all()
    assert (values >= 0).all()
    assert (values[3:] <= torch.tensor([2.0, 1.0, 1 / 3])[:, None]).all()


def test_shift_of_the_logits_changes_nothing(batch):
    logits, target = batch
    assert_close(CompSumLoss(0.5)(logits + 7, target), CompSumLoss(0.5)(logits, target))


def test_the_tangent_keeps_the_worst_rows_finite_and_ordered():
    logits = torch.tensor([[0.0, 50.0], [0.0, 100.0], [0.0, 1e4], [0.0, 2e4]], requires_grad=True)
    losses = CompSumLoss(0.0, reduction="none")(logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (losses.diff() > 0).all()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 0] < 0).all()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_prediction_is_the_label_distribution_where_the_loss_is_least(tau):
    truth, loss = 0.3, CompSumLoss(tau, reduction="none")

    def expected(score):
        logits = torch.tensor([[score, 0.0]], dtype=torch.float64).expand(2, 2)
        return float(loss(logits, torch.tensor([0, 1])) @ torch.tensor([truth, 1 - truth], dtype=torch.float64))

    best = minimize_scalar(expected, bounds=(-10, 10), method="bounded", options={"xatol": 1e-9}).x
    assert_close(float(loss.predict(torch.tensor([[best, 0.0]], dtype=torch.float64))[0, 0]), truth, atol=1e-5, rtol=0)


def excess_at_error(t, tau):
    """Two classes, the likelier with probability (1 + t) / 2: the least loss when erring less the least, by search."""
    likelier = (1 + t) / 2

    def loss(prob):
        return -math.log(prob) if tau == 1 else (1 - prob ** (tau - 1)) / (tau - 1)

    def expected(prob):
        return likelier * loss(prob) + (1 - likelier) * loss(1 - prob)

    search = {"method": "bounded", "options": {"xatol": 1e-12}}
    return (
        minimize_scalar(expected, bounds=(0, 0.5), **search).fun
        - minimize_scalar(expected, bounds=(0.5, 1), **search).fun
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 1.9])
@pytest.mark.parametrize("error", [0.1, 0.5, 0.9])
def test_bound_inverts_the_excess_found_by_search(tau, error):
    gap = excess_at_error(error, tau)
    assert_close(comp_sum_h_consistency_bound(gap, tau, num_classes=2), error, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5, 1.999, 2.0, 3.0])
def test_bound_is_at_most_its_closed_form_rises_and_ends_at_one(tau, num_classes):
    gaps = [0.0, 1e-6, 1e-3, 0.05, 0.2, 0.6, 5.0, 1e6]
    bounds = [comp_sum_h_consistency_bound(gap, tau, num_classes) for gap in gaps]
    loose = [comp_sum_h_consistency_bound(gap, tau, num_classes, tight=False) for gap in gaps]
    assert bounds[0] == 0
    assert bounds[-1] == loose[-1] == 1
    assert bounds == sorted(bounds)
    assert all(bound <= above + 1e-9 for bound, above in zip(bounds, loose, strict=True))


def test_bound_is_continuous_at_cross_entropy():
    at_one = comp_sum_h_consistency_bound(0.01, 1.0, 10)
    for tau in (1 - 1e-10, 1 + 1e-10):
        assert_close(comp_sum_h_consistency_bound(0.01, tau, 10), at_one, atol=1e-8, rtol=0)
    assert_close(comp_sum_h_consistency_bound(0.01, 1.0, 10, tight=False), math.sqrt(0.02))


@pytest.mark.parametrize(
    ("name", "arguments"), [("gap", (-1.0, 1.0, 2)), ("tau", (0.1, -1.0, 2)), ("num_classes", (0.1, 1.0, 1))]
)
def test_bad_arguments_of_the_bound_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        comp_sum_h_consistency_bound(*arguments)
