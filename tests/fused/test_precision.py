"""Half precision, targets of another dtype than the logits, and numbers that are infinite or none."""

import pytest
import torch
from torch.nn.functional import kl_div
from torch.testing import assert_close

from lossworks.fused import linear_kl, linear_loss
from lossworks.losses import (
    AdaptiveLDRLoss,
    BiTemperedLoss,
    BrierLoss,
    CompSumLoss,
    CrossEntropyLoss,
    HuberLoss,
    LDRLoss,
    NormalizedCrossEntropyLoss,
    PseudoHuberLoss,
    TrajectoryLoss,
)
from lossworks.weights import GroupDRO

LIFT = 2.0**16
"""What a loss scaler begins with."""


@pytest.mark.parametrize("loss", [CrossEntropyLoss(0.1), NormalizedCrossEntropyLoss(), BrierLoss()])
def test_float16_keeps_gradients_that_a_loss_scaler_lifts_later(generator, loss):
    hidden = torch.randn(256, 16, generator=generator).half().requires_grad_()
    weight = torch.randn(2000, 16, generator=generator).half().requires_grad_()
    target = torch.randint(2000, (256,), generator=generator)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    wanted = torch.autograd.grad(loss(leaves[0] @ leaves[1].T, target) * LIFT, leaves)
    plain = torch.autograd.grad(loss(hidden @ weight.T, target) * LIFT, (hidden, weight))
    found = torch.autograd.grad(linear_loss(hidden, weight, target, loss) * LIFT, (hidden, weight))
    for ours, theirs, exact in zip(found, plain, wanted, strict=True):
        off, allowed = ((gradient.double() - exact).norm() / exact.norm() for gradient in (ours, theirs))
        assert float(off) < 2 * float(allowed)


@pytest.mark.parametrize("loss", [CompSumLoss(rho=1e-3), LDRLoss(lam=1e-3)])
def test_float16_has_room_for_a_scale_that_hidden_has_none_for(generator, loss):
    hidden = (40 * torch.randn(4, 8, generator=generator)).half()
    weight = (0.01 * torch.randn(5, 8, generator=generator)).half()
    target = torch.tensor([0, 1, 2, 3])
    assert_close(linear_loss(hidden, weight, target, loss), loss(hidden @ weight.T, target), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(0.1), BiTemperedLoss(label_smoothing=0.1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_soft_targets_of_few_digits_are_smoothed_in_the_logits_dtype(generator, loss, dtype):
    hidden, weight = torch.randn(8, 4, generator=generator), torch.randn(1000, 4, generator=generator)
    target = torch.softmax(torch.randn(8, 1000, generator=generator), dim=1).to(dtype)
    assert_close(linear_loss(hidden, weight, target, loss), loss(hidden @ weight.T, target))


def masked(*classes):
    bias = torch.zeros(5, dtype=torch.float64)
    bias[list(classes)] = -torch.inf
    return bias


@pytest.mark.parametrize(
    ("direction", "student", "teacher"),
    [("forward", (3,), (3,)), ("reverse", (3,), (3,)), ("forward", (), (3,)), ("reverse", (3,), ())],
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_class_that_is_out_of_the_question_adds_nothing(generator, direction, student, teacher, reduction):
    tensors = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (6, 5, 6, 5)]
    hidden = tensors[0].requires_grad_()
    given = {"student_bias": masked(*student), "teacher_bias": masked(*teacher)}
    value = linear_kl(hidden, *tensors[1:], **given, direction=direction, reduction=reduction).mean()
    now = (hidden @ tensors[1].T + given["student_bias"]).log_softmax(1)
    before = (tensors[2] @ tensors[3].T + given["teacher_bias"]).log_softmax(1)
    one, other = (before, now) if direction == "forward" else (now, before)
    kept = [c for c in range(5) if c not in (student if direction == "reverse" else teacher)]
    expected = kl_div(other[:, kept], one[:, kept], reduction="none", log_target=True).sum(dim=1).mean()
    assert_close(value, expected)
    for create_graph in (False, True):
        found = torch.autograd.grad(value, hidden, retain_graph=True, create_graph=create_graph)
        assert_close(found, torch.autograd.grad(expected, hidden, retain_graph=True))


def test_a_teacher_of_another_precision_is_taken_as_the_student_is_under_autocast(generator):
    hidden, weight, taught, teacher = (torch.randn(n, 4, generator=generator) for n in (6, 5, 6, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear_kl(hidden, weight, taught.bfloat16(), teacher)
        assert_close(mixed, linear_kl(hidden.bfloat16(), weight.bfloat16(), taught.bfloat16(), teacher.bfloat16()))


def test_only_logits_are_called_nan_that_are(generator):
    hidden, weight = torch.randn(3, 4, generator=generator), torch.randn(1, 4, generator=generator)
    target = torch.tensor([[0.0], [torch.nan], [1.0]])
    assert linear_loss(hidden, weight, target, HuberLoss(), reduction="none").isnan().tolist() == [
        [False],
        [True],
        [False],
    ]
    hidden[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"hidden @ weight.T has NaN in row 1, 2"):
        linear_loss(hidden, weight, target, HuberLoss())


def test_what_the_loss_says_of_its_classes_is_said():
    with pytest.raises(ValueError, match="at least 2 classes"):
        linear_loss(torch.zeros(3, 4), torch.zeros(1, 4), torch.zeros(3).long(), NormalizedCrossEntropyLoss())
    loss = TrajectoryLoss(3, 7)
    with pytest.raises(ValueError, match=r"output must have shape \(n, 7\)"):
        linear_loss(torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3).long(), loss, index=torch.arange(3))


def test_a_loss_whose_row_is_all_that_follows_takes_no_sequences():
    with pytest.raises(ValueError, match=r"hidden must have shape \(n, d\) for PseudoHuberLoss.*got \(2, 3, d\)"):
        linear_loss(torch.zeros(2, 3, 4), torch.zeros(5, 4), torch.zeros(2, 3, 5), PseudoHuberLoss())


@pytest.mark.parametrize("name", ["index", "group"])
@pytest.mark.parametrize("wrong", [torch.zeros(2).long(), [0, 0, 0]])
def test_columns_for_a_weighting_have_a_number_a_row(name, wrong):
    columns = {"index": torch.arange(3), "group": torch.zeros(3).long(), name: wrong}
    with pytest.raises((ValueError, TypeError), match=f"{name} must"):
        linear_loss(
            torch.zeros(3, 4), torch.zeros(5, 4), torch.tensor([0, 1, -100]), CrossEntropyLoss(),
            weights=GroupDRO(num_groups=2), **columns,
        )  # fmt: skip


@pytest.mark.parametrize("index", [False, torch.tensor(1), torch.zeros(7)])
def test_numbers_that_nobody_reads_are_not_looked_at(index):
    given = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3).long()
    assert linear_loss(*given, CrossEntropyLoss(), index=index) == linear_loss(*given, CrossEntropyLoss())


def test_a_temperature_that_is_learned_is_refused():
    given = [torch.zeros(3, 4), torch.zeros(5, 4)] * 2
    with pytest.raises(ValueError, match="temperature must not require a gradient"):
        linear_kl(*given, temperature=torch.tensor(2.0, requires_grad=True))


def test_a_call_that_is_refused_is_no_visit(generator):
    hidden, weight = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    target, index = torch.tensor([0, 1, 2]), torch.arange(3)
    trajectory, adaptive = TrajectoryLoss(3, 5), AdaptiveLDRLoss(3)
    hidden[1] = torch.nan
    for loss in (trajectory, adaptive):
        with pytest.raises(ValueError, match="has NaN in row 1"):
            linear_loss(hidden.clone().requires_grad_(), weight, target, loss, index=index)
    assert trajectory.visits.tolist() == [0, 0, 0]
    assert torch.equal(adaptive.lam, AdaptiveLDRLoss(3).lam)


def test_where_nothing_counts_in_all_parts_the_mean_is_0(generator):
    hidden, weight = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator).requires_grad_()
    ignored = torch.full((3,), -100)
    value = linear_loss(hidden, weight, ignored, CrossEntropyLoss(), total=CrossEntropyLoss().total_of(ignored))
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, weight)[0].any()
