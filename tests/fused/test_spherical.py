import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.testing import assert_close

from lossworks.fused import FactoredSphericalHead
from lossworks.losses import ZLoss

D, C, ROWS = 12, 150, 10


def squared(logits, target):
    return (logits - one_hot(target, logits.shape[1])).square().sum(1)


LOSSES = {
    "z": (ZLoss(reduction="none"), ZLoss(), 0.5),
    "sharp z": (ZLoss(3.0, 2.0, reduction="none"), ZLoss(3.0, 2.0), 0.3),
    "squared": (squared, "squared", 0.01),
}


def batches(steps, dtype, generator):
    for _ in range(steps):
        target = torch.randint(C, (ROWS,), generator=generator)
        target[1] = target[0]
        yield torch.randn(ROWS, D, generator=generator, dtype=dtype), target


def linear(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Linear(D, C, bias=False, dtype=dtype)


def train(head, steps, generator, lr=0.01):
    for hidden, target in batches(steps, head.V.dtype, generator):
        head.loss(hidden, target).backward()
        head.step(lr)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_thousand_steps_are_those_of_dense_sgd(name, dtype, tolerance, decay, generator):
    dense_loss, own_loss, lr = LOSSES[name]
    dense = linear(dtype)
    before = dense.weight.detach().clone()
    head = FactoredSphericalHead.from_linear(dense, own_loss, weight_decay=decay)
    optimizer = torch.optim.SGD(dense.parameters(), lr=lr, weight_decay=decay)
    for hidden, target in batches(1000, dtype, generator):
        leaf, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
        value, wanted = head.loss(leaf, target), dense_loss(dense(other), target).mean()
        value.backward()
        optimizer.zero_grad()
        wanted.backward()
        head.step(lr)
        optimizer.step()
    assert_close(value, wanted, atol=10 * tolerance, rtol=10 * tolerance)
    assert_close(leaf.grad, other.grad, atol=10 * tolerance, rtol=10 * tolerance)
    assert float((dense.weight.detach() - before).abs().max()) > 0.1
    assert_close(head.to_linear().weight, dense.weight, atol=tolerance, rtol=0)


def test_its_statistics_stay_those_of_its_weights_over_ten_thousand_steps(generator):
    head = FactoredSphericalHead(D, C, ZLoss(2.0, 1.0))
    train(head, 10_000, generator, lr=0.2)
    weight = head.to_linear().weight.double()
    assert_close(head.gram, weight.T @ weight, rtol=1e-5, atol=1e-4)
    assert_close(head.weight_sum, weight.sum(0), rtol=1e-5, atol=1e-3)
    assert float(head.drift) < 1e-10
    assert_close(head.U @ head.U_inverse, torch.eye(D, dtype=torch.float64), atol=1e-8, rtol=0)


def test_a_badly_conditioned_factor_is_folded_into_the_weights_and_nothing_changes(generator):
    dense = linear()
    often = FactoredSphericalHead.from_linear(dense, largest_condition=1.001)
    never = FactoredSphericalHead.from_linear(dense, largest_condition=1e6)
    state = generator.get_state()
    for head in (often, never):
        generator.set_state(state)
        train(head, 60, generator)
    assert int(often.folds) > 5
    assert int(never.folds) == 0
    assert_close(often.to_linear().weight, never.to_linear().weight, atol=1e-12, rtol=0)
    assert_close(often.gram, never.gram, atol=1e-10, rtol=0)


def test_a_step_at_which_the_factor_has_no_inverse_is_exact_too():
    """With 2 lr |h|^2 = 1 the dense factor of the squared loss's step takes h to 0."""
    dense = linear()
    head = FactoredSphericalHead.from_linear(dense)
    hidden, target = torch.zeros(1, D, dtype=torch.float64), torch.tensor([3])
    hidden[0, 0] = 1.0
    head.loss(hidden, target).backward()
    head.step(0.5)
    squared(dense(hidden), target).mean().backward()
    assert_close(head.to_linear().weight, dense.weight - 0.5 * dense.weight.grad)
    assert int(head.folds) == 1
    train(head, 5, torch.Generator().manual_seed(0))
    assert bool(head.to_linear().weight.isfinite().all())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head)), "state"])
def test_stopping_saving_loading_and_going_on_is_never_having_stopped(copied, generator):
    head = FactoredSphericalHead.from_linear(linear(), ZLoss())
    state = generator.get_state()
    train(head, 150, generator, lr=0.3)
    generator.set_state(state)
    again = FactoredSphericalHead.from_linear(linear(), ZLoss())
    train(again, 70, generator, lr=0.3)
    if copied == "state":
        fresh = FactoredSphericalHead(D, C, ZLoss(), dtype=torch.float64)
        fresh.load_state_dict(again.state_dict())
    else:
        fresh = copied(again)
    train(fresh, 80, generator, lr=0.3)
    for name, buffer in head.named_buffers():
        assert_close(fresh.get_buffer(name), buffer, rtol=0, atol=0)


def test_it_is_converted_from_and_to_a_linear_layer_exactly():
    for dtype in (torch.float32, torch.float64):
        dense = linear(dtype)
        assert torch.equal(FactoredSphericalHead.from_linear(dense).to_linear().weight, dense.weight)


def test_scores_and_top_k_are_the_dense_layers(generator, monkeypatch):
    monkeypatch.setattr("lossworks.fused.spherical._AT_ONCE", 20 * D)
    head = FactoredSphericalHead.from_linear(linear(), ZLoss())
    train(head, 30, generator, lr=0.3)
    hidden = torch.randn(7, D, generator=generator, dtype=torch.float64, requires_grad=True)
    dense = head.to_linear()
    assert_close(head(hidden), dense(hidden))
    values, classes = head.topk(hidden, 5)
    wanted = dense(hidden).topk(5, dim=1)
    assert_close(values, wanted.values.detach())
    assert torch.equal(classes, wanted.indices)
    assert head.topk(hidden, C)[0].shape == (7, C)
    (gradient,) = torch.autograd.grad(head(hidden).sin().sum(), hidden)
    assert_close(gradient, torch.autograd.grad(dense(hidden).sin().sum(), hidden)[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_ignored_rows_and_reductions_are_those_of_a_loss(reduction, generator):
    hidden, target = next(batches(1, torch.float64, generator))
    target[3] = -100
    weight = torch.linspace(0, 2, ROWS, dtype=torch.float64)
    upstream = torch.randn(ROWS, generator=generator, dtype=torch.float64) if reduction == "none" else torch.tensor(1.7)
    dense = linear()
    head = FactoredSphericalHead.from_linear(dense, ZLoss())
    leaf, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    value = head.loss(leaf, target, sample_weight=weight, reduction=reduction)
    wanted = ZLoss(reduction=reduction)(dense(other), target, sample_weight=weight)
    assert_close(value, wanted)
    (value * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    head.step(0.4)
    assert_close(leaf.grad, other.grad)
    assert_close(head.to_linear().weight, dense.weight - 0.4 * dense.weight.grad)


def test_micro_batches_add_up_to_their_batch(generator):
    hidden, target = next(batches(1, torch.float64, generator))
    whole, parts = (FactoredSphericalHead.from_linear(linear(), ZLoss()) for _ in range(2))
    whole.loss(hidden, target).backward()
    for rows in torch.arange(ROWS).split(4):
        parts.loss(hidden[rows], target[rows], total=float(ROWS)).backward()
    for head in (whole, parts):
        head.step(0.5)
    assert_close(parts.to_linear().weight, whole.to_linear().weight)


def test_a_loss_of_ones_own_is_a_function_of_the_statistics(generator):
    def taylor(own, summed, squares, classes):
        return -((own.square() + 0.1) / (squares + 0.1 * classes)).log()

    dense = linear()
    head = FactoredSphericalHead.from_linear(dense, taylor)
    hidden, target = next(batches(1, torch.float64, generator))
    head.loss(hidden, target).backward()
    head.step(0.3)
    scores = dense(hidden).square() + 0.1
    (-(scores.gather(1, target[:, None]).squeeze(1) / scores.sum(1)).log()).mean().backward()
    assert_close(head.to_linear().weight, dense.weight - 0.3 * dense.weight.grad)


def test_only_v_follows_another_dtype():
    head = FactoredSphericalHead(D, C).double()
    assert head.V.dtype == torch.float64
    assert head.float().V.dtype == torch.float32
    assert head.U.dtype == head.gram.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_leaves_the_weights_as_they_are(dtype, generator):
    dense = linear(torch.float32)
    model = nn.Sequential(nn.Linear(D, D), FactoredSphericalHead.from_linear(dense)).to(dtype)
    assert model[0].weight.dtype == dtype
    assert torch.equal(model[1].to_linear().weight, dense.weight)
    hidden, target = next(batches(1, torch.float32, generator))
    model[1].loss(model[0](hidden.to(dtype)), target).backward()
    model[1].step(0.1)
    assert model[0].weight.grad.dtype == dtype
    assert bool((model[1].to_linear().weight != dense.weight).any())


@pytest.mark.parametrize("held", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hidden_of_any_dtype_gives_what_v_has(held, dtype, generator):
    dense = linear(held)
    head = FactoredSphericalHead.from_linear(dense, ZLoss())
    hidden, target = next(batches(1, torch.float64, generator))
    hidden = hidden.to(dtype).requires_grad_()
    exact, weight = hidden.detach().double(), dense.weight.detach().double()
    scores = exact @ weight.T
    assert_close(head(hidden), scores.to(held))
    values, classes = head.topk(hidden, 5)
    assert_close(values, scores.topk(5, dim=1).values.to(held))
    assert torch.equal(classes, scores.topk(5, dim=1).indices)
    assert_close(head.loss(hidden, target), ZLoss()(scores, target).to(held))
    (gradient,) = torch.autograd.grad(head(hidden).square().sum(), hidden)
    assert gradient.dtype == dtype
    assert_close(gradient.double(), 2 * scores @ weight, atol=1e-2, rtol=1e-2)


def test_a_learned_z_loss_is_a_part_of_the_head(generator):
    a = nn.Parameter(torch.tensor(2.0))
    dense = linear(torch.float32)
    head = FactoredSphericalHead.from_linear(dense, ZLoss(a))
    assert [id(parameter) for parameter in head.parameters()] == [id(a)]
    other = a.detach().clone().requires_grad_()
    hidden, target = next(batches(1, torch.float32, generator))
    head.loss(hidden, target).backward()
    ZLoss(other)(dense(hidden), target).backward()
    assert_close(a.grad, other.grad)
    head.zero_grad()
    assert a.grad is None


def test_a_z_losses_tensors_are_saved_moved_and_loaded(generator):
    head = FactoredSphericalHead(D, C, ZLoss(torch.tensor(2.0), torch.tensor(1.0)))
    assert head.double().spherical.a.dtype == torch.float64
    fresh = FactoredSphericalHead(D, C, ZLoss(torch.tensor(1.0), torch.tensor(0.0)), dtype=torch.float64)
    fresh.load_state_dict(head.state_dict())
    hidden, target = next(batches(1, torch.float64, generator))
    wanted = ZLoss(2.0, 1.0)(head.to_linear()(hidden), target)
    assert_close(fresh.loss(hidden, target), wanted)


def test_of_a_z_loss_the_ignored_class_must_be_the_heads_and_the_reduction_is_not_read(generator):
    with pytest.raises(ValueError, match="ignore_index must be 0 as the loss's own is, got -100"):
        FactoredSphericalHead(D, C, ZLoss(ignore_index=0))
    dense = linear()
    hidden, target = next(batches(1, torch.float64, generator))
    target[2:5] = 0
    for own in (ZLoss(reduction="sum"), ZLoss(reduction="sum", ignore_index=0)):
        head = FactoredSphericalHead.from_linear(dense, own, ignore_index=0)
        assert_close(head.loss(hidden, target), ZLoss()(dense(hidden[target != 0]), target[target != 0]))


@pytest.mark.parametrize("loss", [ZLoss(), "squared"])
def test_gradients_in_hidden_are_right_twice(loss, generator):
    head = FactoredSphericalHead(D, C, loss, dtype=torch.float64)
    hidden, target = next(batches(1, torch.float64, generator))
    hidden = hidden[:4].requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda h: head.loss(h, target[:4]), hidden, check_undefined_grad=False)


def test_a_step_without_a_batch_decays_the_weights():
    dense = linear()
    head = FactoredSphericalHead.from_linear(dense, weight_decay=0.5)
    head.step(0.1)
    assert_close(head.to_linear().weight, 0.95 * dense.weight)


def test_a_loss_from_before_the_step_is_refused(generator):
    head = FactoredSphericalHead(D, C)
    hidden, target = next(batches(1, torch.float32, generator))
    stale = head.loss(hidden, target)
    head.step(0.1)
    with pytest.raises(RuntimeError, match="before the last step"):
        stale.backward()
    with torch.no_grad():
        head.loss(hidden, target)
    head.loss(hidden, target).backward()
    head.zero_grad()
    before = head.to_linear().weight
    head.step(1.0)
    assert_close(head.to_linear().weight, before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FactoredSphericalHead(0, 5), ValueError, "in_features"),
        (lambda: FactoredSphericalHead(3, 1), ValueError, "num_classes"),
        (lambda: FactoredSphericalHead(3, 5, "squard"), ValueError, "did you mean 'squared'"),
        (lambda: FactoredSphericalHead(3, 5, 7), TypeError, "loss must be a ZLoss"),
        (lambda: FactoredSphericalHead(3, 5, weight_decay=-1.0), ValueError, "weight_decay"),
        (lambda: FactoredSphericalHead(3, 5, largest_condition=1.0), ValueError, "largest_condition must be > 1"),
        (lambda: FactoredSphericalHead(3, 5, dtype=torch.float16), TypeError, "dtype"),
        (lambda: FactoredSphericalHead.from_linear(nn.Linear(3, 5)), ValueError, "no bias"),
        (lambda: FactoredSphericalHead.from_linear(None), TypeError, "linear must be a torch.nn.Linear, got NoneType"),
        (lambda: FactoredSphericalHead(3, 5).loss(torch.ones(2, 4), torch.tensor([0, 1])), ValueError, "hidden"),
        (
            lambda: FactoredSphericalHead(3, 5).loss(torch.ones(2, 3), torch.tensor([0, 5])),
            ValueError,
            "got 5 in row 1",
        ),
        (lambda: FactoredSphericalHead(3, 5).loss(torch.ones(2, 3), torch.tensor([0])), ValueError, "target"),
        (lambda: FactoredSphericalHead(3, 5).loss(torch.ones(2, 3), torch.ones(2)), TypeError, "target must be int64"),
        (lambda: FactoredSphericalHead(3, 5).topk(torch.ones(2, 3), 6), ValueError, "k must be in"),
        (lambda: FactoredSphericalHead(3, 5).step(-0.1), ValueError, "lr"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_dtype_that_is_none_is_shown_on_one_line():
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64, got '\\r'"):
        FactoredSphericalHead(2, 3, dtype="\r")
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64, got array"):
        FactoredSphericalHead(2, 3, dtype=np.arange(3))
