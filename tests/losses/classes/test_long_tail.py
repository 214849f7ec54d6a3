"""Losses that know the class counts: their equations, their kinship, and what they are best for."""

import math

import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.fused import linear_loss
from lossworks.losses import BalancedSoftmaxLoss, LDAMLoss, LogitAdjustedLoss

COUNTS = torch.tensor([1000.0, 300.0, 100.0, 30.0, 10.0], dtype=torch.float64)
LOSSES = [LDAMLoss, LogitAdjustedLoss, BalancedSoftmaxLoss]


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_counts_without_margin_are_cross_entropy(batch, loss):
    settings = {"max_margin": 0.0} if loss is LDAMLoss else {}
    assert_close(loss(torch.full((5,), 7.0), **settings)(*batch), cross_entropy(*batch))


@pytest.mark.parametrize("loss", LOSSES)
def test_shares_serve_as_counts(batch, loss):
    assert_close(loss(COUNTS / COUNTS.sum())(*batch), loss(COUNTS)(*batch))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_class_without_rows_counts_as_the_rarest_with_rows(batch, loss):
    counts, empty = COUNTS.clone(), COUNTS.clone()
    counts[1], empty[1] = 10.0, 0.0
    assert_close(loss(empty)(*batch), loss(counts)(*batch))


def test_ldam_shifts_the_labels_logit_alone_by_the_fourth_root(batch):
    logits, target = batch
    margin = [0.5 * (10 / n) ** 0.25 for n in COUNTS.tolist()]
    expected = []
    for row, label in zip((30 * logits).tolist(), target.tolist(), strict=True):
        row[label] -= 30 * margin[label]
        top = max(row)
        expected.append(top + math.log(sum(math.exp(z - top) for z in row)) - row[label])
    value = LDAMLoss(COUNTS, max_margin=0.5, scale=30.0, reduction="none")(logits, target)
    assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_ldam_predicts_from_the_scaled_outputs(batch):
    assert_close(LDAMLoss(COUNTS, scale=3.0).predict(batch[0]), (3 * batch[0]).softmax(dim=1))


def test_balanced_softmax_weighs_each_exponential_by_the_count(batch):
    logits, target = batch
    weighted = COUNTS * logits.exp()
    expected = -(weighted[range(32), target] / weighted.sum(dim=1)).log()
    assert_close(BalancedSoftmaxLoss(COUNTS, reduction="none")(logits, target), expected)


def test_logit_adjustment_at_tau_one_is_balanced_softmax(batch):
    assert_close(LogitAdjustedLoss(COUNTS, tau=1.0)(*batch), BalancedSoftmaxLoss(COUNTS)(*batch))


def test_logit_adjustment_at_tau_zero_is_cross_entropy(batch):
    assert_close(LogitAdjustedLoss(COUNTS, tau=0.0)(*batch), cross_entropy(*batch))


def test_logit_adjusted_minimiser_predicts_the_balanced_posterior():
    likelihood = torch.tensor([0.2, 0.5, 0.1, 0.1, 0.1], dtype=torch.float64)
    prior = COUNTS / COUNTS.sum()
    posterior = likelihood * prior / (likelihood * prior).sum()
    loss = LogitAdjustedLoss(COUNTS, reduction="none")

    def risk(z):
        logits = torch.tensor(z, requires_grad=True)
        value = (posterior * loss(logits.expand(5, 5), torch.arange(5))).sum()
        value.backward()
        return value.item(), logits.grad.numpy()

    best = torch.tensor(minimize(risk, x0=[0.0] * 5, jac=True, tol=1e-12).x)
    assert_close(loss.predict(best[None])[0], likelihood / likelihood.sum(), atol=1e-4, rtol=0)
    assert posterior.argmax() == 0
    assert best.argmax() == 1


def test_tau_and_margin_are_learnable(batch):
    one = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tau: LogitAdjustedLoss(COUNTS, tau)(*batch), one)
    assert torch.autograd.gradcheck(lambda m, s: LDAMLoss(COUNTS, m, s)(*batch), (one, one))


def _spelled_out(loss, logits, target):
    """The loss in float64 with numbers that it isn't given as tensors."""
    counts = torch.tensor([1001.0, 333.0, 97.0, 31.0, 9.0], dtype=torch.float64)
    logits = logits.double()
    if loss is LDAMLoss:
        behind = logits.clone()
        behind[range(len(target)), target] -= 0.5 * (9 / counts[target]) ** 0.25
        return cross_entropy(behind, target)
    return cross_entropy(logits + counts.log(), target)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("moved", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_counts_are_exact_in_every_dtype_and_form(batch, loss, moved, dtype, tolerance, biased):
    logits, target = batch[0].to(dtype), batch[1]
    each = loss(torch.tensor([1001.0, 333.0, 97.0, 31.0, 9.0])).to(moved)
    wanted = _spelled_out(loss, logits, target)
    bias = torch.zeros(5, dtype=dtype) if biased else None
    fused = linear_loss(logits, torch.eye(5, dtype=dtype), target, each, bias=bias)
    for found in (each(logits, target), fused):
        assert found.dtype == dtype
        assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_wrong_counts_are_refused(batch, loss):
    with pytest.raises(ValueError, match="class_counts must be >= 0 with a positive, finite sum"):
        loss(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"class_counts must have shape \(C,\)"):
        loss(torch.ones(2, 2))
    with pytest.raises(TypeError, match="class_counts must be floating-point"):
        loss(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="output must have 3 classes, as class_counts has, got 5"):
        loss(torch.ones(3))(*batch)
