"""The kernels against torch, run by ``test_kernels.py`` in a process of its own, where Triton interprets on the CPU."""

import math

import pytest
import torch
from torch.testing import assert_close

from lossworks.fused.softmax import kernels_apply, row_gradient_, row_statistics

SHAPES = ((7, 1), (5, 2), (9, 300), (3, 8193))  # below, beside and above a block, none a power of two but the first two
HALF = (torch.bfloat16, torch.float16)
# The interpreter rounds bfloat16 towards zero: a unit in the last place, not half of one.
LAST_PLACE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def rows(dtype, shape, generator, absent=True):
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype)
    target = torch.randint(shape[1], shape[:1], generator=generator)
    if absent:
        target[1] = -1
    return logits, target


def log_probabilities(logits, target, handicap):
    label = target.clamp(min=0)[:, None]
    change = torch.zeros_like(label, dtype=torch.float64) if handicap is None else handicap.double()[:, None]
    return logits.double().scatter_add(1, label, torch.where(target[:, None] >= 0, change, 0)).log_softmax(dim=1)


@pytest.mark.parametrize("handicapped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_statistics_give_the_surprise_and_the_total(dtype, shape, handicapped, generator):
    logits, target = rows(dtype, shape, generator)
    assert kernels_apply(logits)
    handicap = torch.randn(shape[0], generator=generator) if handicapped else None
    log_p = log_probabilities(logits, target, handicap)
    found = row_statistics(logits, target, handicap, total=True)
    own = found.own + found.mass.log()
    here = target >= 0
    wanted = -log_p.gather(1, target.clamp(min=0)[:, None])[:, 0]
    assert_close(own[here], wanted[here].float(), atol=1e-5, rtol=1e-6)
    assert (found.own[~here] == 0).all()
    assert_close(found.total + shape[1] * found.mass.log(), -log_p.sum(dim=1).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("handicapped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_gradient_is_that_of_autograd(dtype, shape, handicapped, generator):
    logits, target = rows(dtype, shape, generator)
    handicap = torch.randn(shape[0], generator=generator) if handicapped else None
    on_own = torch.where(target >= 0, torch.randn(shape[0], generator=generator), 0)
    on_total = torch.randn(shape[0], generator=generator) / shape[1]
    leaf = logits.double().requires_grad_()
    log_p = log_probabilities(leaf, target, handicap)
    own = -log_p.gather(1, target.clamp(min=0)[:, None])[:, 0]
    (wanted,) = torch.autograd.grad((on_own * own - on_total * log_p.sum(dim=1)).sum(), leaf)
    found = row_statistics(logits, target, handicap)
    slope = on_own + shape[1] * on_total
    row_gradient_(logits, target, found.maximum, found.mass.log(), slope, on_own, on_total, handicap)
    assert_close(logits.double(), wanted, atol=3e-6, rtol=LAST_PLACE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_rows_that_do_not_count_get_zero_whatever_they_hold(dtype, generator):
    logits, target = rows(dtype, (4, 300), generator, absent=False)
    counts = torch.tensor([1.0, 1.0, 0.0, 0.0])
    found = row_statistics(logits, target)
    logits[2, 7], logits[3, 8] = math.nan, math.inf
    row_gradient_(logits, target, found.maximum, found.mass.log(), counts, counts)
    assert (logits[2:] == 0).all()
    assert (logits[:2] != 0).any(dim=1).all()


@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extreme_logits_stay_finite(fill):
    logits = torch.full((2, 300), fill)
    logits[1, 5] = -fill
    target = torch.tensor([3, 5])
    found = row_statistics(logits, target, total=True)
    assert_close(found.own + found.mass.log(), -torch.log_softmax(logits, 1)[[0, 1], target])
    ones = torch.ones(2)
    wanted = logits.softmax(dim=1)
    wanted[[0, 1], target] -= 1
    row_gradient_(logits, target, found.maximum, found.mass.log(), ones, ones)
    assert_close(logits, wanted, atol=1e-6, rtol=1e-5)


def test_rows_may_lie_apart(generator):
    whole, target = rows(torch.float32, (5, 300), generator, absent=False)
    before, inside = whole.clone(), whole[:, 20:270]
    target = target.clamp(max=249)
    found = row_statistics(inside, target)
    ones = torch.ones(5)
    wanted = inside.softmax(dim=1)
    wanted[torch.arange(5), target] -= 1
    row_gradient_(inside, target, found.maximum, found.mass.log(), ones, ones)
    assert_close(inside, wanted, atol=1e-6, rtol=1e-5)
    assert_close(whole[:, :20], before[:, :20], atol=0, rtol=0)
    assert_close(whole[:, 270:], before[:, 270:], atol=0, rtol=0)


def test_no_rows():
    logits, target = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    assert row_statistics(logits, target).maximum.shape == (0,)
    nothing = torch.zeros(0)
    row_gradient_(logits, target, nothing, nothing, nothing, nothing)
