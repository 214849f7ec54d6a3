"""The kernels against torch, run by ``test_kernels.py`` in a process of its own, where Triton interprets on the CPU."""

import copy
import math

import pytest
import torch
from torch.nn.functional import linear
from torch.testing import assert_close

import lossworks as lw
from lossworks.catalog import parts
from lossworks.fused import kernels
from lossworks.fused.softmax import RowStatistics, kernels_apply, row_gradient_, row_statistics
from lossworks.roles import SoftmaxForm
from lossworks.testing.inputs import driven, from_data

SHAPES = ((4, 1), (5, 300), (2, 8193))  # one class, part of a block, a block and one class more
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
    assert kernels_apply(logits, dtype)
    handicap = torch.randn(shape[0], generator=generator) if handicapped else None
    log_p = log_probabilities(logits, target, handicap)
    found = RowStatistics(*kernels.row_statistics(logits, target, handicap, total=True))
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
    found = RowStatistics(*kernels.row_statistics(logits, target, handicap))
    slope = on_own + shape[1] * on_total
    kernels.row_gradient_(logits, target, found.maximum, found.mass.log(), slope, on_own, on_total, handicap)
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


@pytest.mark.parametrize("handicapped", [False, True])
def test_logits_are_scaled_and_offset_as_they_are_read(handicapped, generator):
    logits, target = rows(torch.bfloat16, (6, 300), generator)
    offset, scale = torch.randn(300, generator=generator), torch.tensor(0.3)
    handicap = torch.randn(6, generator=generator) if handicapped else None
    leaf = logits.double().requires_grad_()
    log_p = log_probabilities(scale * leaf + offset, target, handicap)
    here = (target >= 0).float()
    own = -log_p.gather(1, target.clamp(min=0)[:, None])[:, 0]
    (wanted,) = torch.autograd.grad((here * own).sum(), leaf)
    maximum, mass, gap, _ = kernels.row_statistics(logits, target, handicap, offset=offset, scale=scale)
    assert_close((gap + mass.log())[target >= 0], own[target >= 0].float(), atol=1e-5, rtol=1e-6)
    slopes = (scale * here, scale * here, None)
    kernels.row_gradient_(logits, target, maximum, mass.log(), *slopes, handicap, offset=offset, scale=scale)
    assert_close(logits.double(), wanted, atol=3e-6, rtol=LAST_PLACE[torch.bfloat16])


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


CLASSES = 13
CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def family():
    """Every loss of the softmax family, in every setting."""
    facts = from_data(num_classes=CLASSES)
    for name, entry in parts().items():
        part = entry.part
        if isinstance(part, type) and issubclass(part, lw.Loss) and part.rowwise and part.kind.has_classes:
            for number, setting in enumerate(driven(part)):
                loss = part(**{need: facts[need] for need in part.needs}, **setting)
                if isinstance(loss.closed_form(CLASSES), SoftmaxForm):
                    yield pytest.param(loss, id=f"{name}-{number}")


def layer(dtype, generator, rows=5, features=6):
    """Hidden rows, a layer, targets of which one is ignored, weights of the rows, an upstream gradient."""
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    target = torch.randint(CLASSES, (rows,), generator=generator)
    target[2] = -100
    leaves = {"hidden": draw(rows, features), "weight": draw(CLASSES, features), "bias": draw(CLASSES)}
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in leaves.items()}
    return leaves, target, draw(rows).abs().requires_grad_(), draw(rows)


def gradients(value, leaves, upstream=None):
    each = value if upstream is None else value * upstream
    return torch.autograd.grad(3 * each.sum(), list(leaves))


@pytest.fixture
def calls(monkeypatch):
    """How often the statistics were asked of the kernels."""
    asked, ask = [], kernels.row_statistics
    monkeypatch.setattr(kernels, "row_statistics", lambda *given, **options: asked.append(1) or ask(*given, **options))
    return asked


@pytest.mark.parametrize(("dtype", "reduction"), [(torch.float32, "none"), (torch.bfloat16, "mean")])
@pytest.mark.parametrize("loss", list(family()))
def test_linear_loss_is_the_loss_of_the_logits(loss, dtype, reduction, generator, calls):
    leaves, target, sample_weight, upstream = layer(dtype, generator)
    upstream = upstream if reduction == "none" else None
    found = lw.fused.linear_loss(
        leaves["hidden"],
        leaves["weight"],
        target,
        loss,
        bias=leaves["bias"],
        sample_weight=sample_weight,
        reduction=reduction,
        chunk=3,
    )
    assert len(calls) == 2
    assert found.dtype == torch.float32
    plain = copy.deepcopy(loss).double()
    plain.reduction = reduction
    exact = [tensor.detach().double().requires_grad_() for tensor in (*leaves.values(), sample_weight)]
    wanted = plain(linear(*exact[:3]), target, sample_weight=exact[3])
    assert_close(found.double(), wanted, atol=CLOSE[dtype], rtol=CLOSE[dtype])
    given = gradients(found, [*leaves.values(), sample_weight], upstream)
    for mine, true in zip(given, gradients(wanted, exact, upstream), strict=True):
        assert_close(mine.double(), true, atol=CLOSE[dtype] * max(float(true.abs().max()), 0.1), rtol=CLOSE[dtype])
    assert [tensor.dtype for tensor in given] == [dtype] * 3 + [torch.float32]


@pytest.mark.parametrize("loss", list(family()))
def test_a_number_that_all_logits_share_costs_no_digits(loss, generator):
    leaves, target, *_ = layer(torch.float32, generator)
    hidden, weight = (leaves[name].detach().mul(4).round().requires_grad_() for name in ("hidden", "weight"))
    bias = torch.full((CLASSES,), 1e6)
    value = lw.fused.linear_loss(hidden, weight / 16, target, loss, bias=bias, reduction="none", chunk=3)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    plain = copy.deepcopy(loss).double()
    plain.reduction = "none"
    wanted = plain(linear(exact[0], exact[1] / 16, bias.double()), target)
    assert_close(value.double(), wanted, atol=1e-4, rtol=1e-4)
    for mine, true in zip(gradients(value, [hidden, weight]), gradients(wanted, exact), strict=True):
        assert_close(mine.double(), true, atol=1e-4 * max(float(true.abs().max()), 0.1), rtol=1e-4)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_part_has_no_gradient_and_the_others_theirs(frozen, generator):
    leaves, target, _, _ = layer(torch.float32, generator)
    loss = lw.losses.CrossEntropyLoss(0.1)
    leaves[frozen].requires_grad_(False)
    value = lw.fused.linear_loss(leaves["hidden"], leaves["weight"], target, loss, bias=leaves["bias"], chunk=3)
    others = [tensor for name, tensor in leaves.items() if name != frozen]
    wanted = gradients(loss(linear(*leaves.values()), target), others)
    assert_close(gradients(value, others), wanted)


def test_a_learned_hyperparameter_has_its_gradient(generator):
    leaves, target, _, _ = layer(torch.float32, generator)
    loss = lw.losses.FocalLoss(torch.tensor(1.5, requires_grad=True))
    value = lw.fused.linear_loss(leaves["hidden"], leaves["weight"], target, loss, chunk=3)
    wanted = loss(leaves["hidden"] @ leaves["weight"].T, target)
    assert_close(gradients(value, [loss.gamma]), gradients(wanted, [loss.gamma]))


def test_a_second_backward_pass_adds_the_same(generator):
    leaves, target, _, _ = layer(torch.float32, generator)
    value = lw.fused.linear_loss(leaves["hidden"], leaves["weight"], target, lw.losses.CrossEntropyLoss(), chunk=3)
    value.backward(retain_graph=True)
    once = leaves["weight"].grad.clone()
    value.backward()
    assert_close(leaves["weight"].grad, 2 * once)


def test_autocast_sums_in_the_precision_of_the_weights(generator):
    leaves, target, _, _ = layer(torch.float32, generator)
    loss = lw.losses.CrossEntropyLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = lw.fused.linear_loss(leaves["hidden"], leaves["weight"], target, loss, bias=leaves["bias"], chunk=3)
    wanted = loss(linear(*leaves.values()), target)
    assert_close(value, wanted, atol=3e-2, rtol=0)
    for mine, true in zip(gradients(value, leaves.values()), gradients(wanted, leaves.values()), strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, true, atol=3e-2 * float(true.abs().max()), rtol=0)


def test_small_upstream_gradients_survive_float16(generator):
    leaves, target, _, _ = layer(torch.float16, generator)
    loss, scale = lw.losses.CrossEntropyLoss(), 2.0**14
    value = lw.fused.linear_loss(leaves["hidden"], leaves["weight"], target, loss, total=2.0**20, chunk=3)
    (found,) = torch.autograd.grad(scale * value, leaves["weight"])
    exact = [leaves[name].detach().double().requires_grad_() for name in ("hidden", "weight")]
    (wanted,) = torch.autograd.grad(scale * loss(exact[0] @ exact[1].T, target, total=2.0**20), exact[1])
    assert_close(found.double(), wanted, atol=4e-3 * float(wanted.abs().max()), rtol=0)


def test_no_rows_have_gradients_of_zero():
    hidden, weight = torch.zeros(0, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    lw.fused.linear_loss(hidden, weight, target, lw.losses.CrossEntropyLoss()).backward()
    assert_close(weight.grad, torch.zeros(5, 3))


def test_float64_and_other_losses_go_the_usual_way(generator, calls):
    leaves, target, _, _ = layer(torch.float64, generator)
    lw.fused.linear_loss(leaves["hidden"], leaves["weight"], target, lw.losses.CrossEntropyLoss())
    single = (leaves["hidden"].float(), leaves["weight"].float())
    lw.fused.linear_loss(*single, target, lw.losses.CrammerSingerLoss())
    assert not calls
    lw.fused.linear_loss(*single, target, lw.losses.CrossEntropyLoss())
    assert calls
