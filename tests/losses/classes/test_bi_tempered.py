"""Bi-tempered loss: against a root finder, its limits, and that it is proper."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import BiTemperedLoss

TEMPERATURES = [(0.8, 1.2), (0.2, 4.0), (0.5, 1.0), (1.0, 1.7), (0.0, 2.0)]


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (32,), generator=generator
    )


def tempered_log(x: np.ndarray, t: float) -> np.ndarray:
    return np.log(x) if t == 1 else (x ** (1 - t) - 1) / (1 - t)


def tempered_exp(x: np.ndarray, t: float) -> np.ndarray:
    return np.exp(x) if t == 1 else np.maximum(1 + (1 - t) * x, 0) ** (1 / (1 - t))


def tempered_softmax(logits: np.ndarray, t: float) -> np.ndarray:
    top = logits.max()
    reach = -tempered_log(np.array(1 / len(logits)), t)
    level = brentq(lambda x: tempered_exp(logits - x, t).sum() - 1, top, top + reach + 1e-9, xtol=1e-13)
    return tempered_exp(logits - level, t)


@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
def test_equals_the_definition_with_a_root_finders_normaliser(batch, t1, t2):
    logits, target = batch
    expected = []
    for row, label in zip(logits.numpy(), target.numpy(), strict=True):
        p = tempered_softmax(row, t2)
        expected.append(-tempered_log(p[label], t1) - (1 - (p ** (2 - t1)).sum()) / (2 - t1))
    expected = torch.tensor(np.array(expected))
    assert_close(BiTemperedLoss(t1, t2, reduction="none")(logits, target), expected, atol=1e-9, rtol=1e-9)
    tensors = (torch.tensor(t, dtype=torch.float64) for t in (t1, t2))
    assert_close(BiTemperedLoss(*tensors, reduction="none")(logits, target), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("t2", [1.2, 1.5, 3.0])
@pytest.mark.parametrize("scale", [0.1, 5.0, 1e4])
def test_tempered_softmax_of_many_classes_sums_to_one(t2, scale, generator):
    logits = scale * torch.randn(8, 1000, dtype=torch.float64, generator=generator)
    probability = BiTemperedLoss(t2=t2).predict(logits)
    assert_close(probability.sum(dim=1), torch.ones(8, dtype=torch.float64), atol=1e-7, rtol=0)
    assert_close(probability[0], torch.from_numpy(tempered_softmax(logits[0].numpy(), t2)), atol=1e-7, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, torch.tensor(1.0, dtype=torch.float64)])
def test_a_masked_class_is_absent_at_temperatures_of_one(batch, temperature):
    logits, target = batch
    masked = torch.cat([logits, torch.full((len(logits), 1), -torch.inf, dtype=logits.dtype)], dim=1).requires_grad_()
    leaf = logits.clone().requires_grad_()
    expected = cross_entropy(leaf, target)
    found = BiTemperedLoss(temperature, temperature)(masked, target)
    assert_close(found, expected)
    expected.backward()
    found.backward()
    assert_close(masked.grad[:, :-1], leaf.grad)
    assert_close(masked.grad[:, -1], torch.zeros(len(logits), dtype=logits.dtype))


def test_autocast_rounds_nothing(generator):
    logits = 3 * torch.randn(16, 1000, generator=generator)
    target = torch.randint(1000, (16,), generator=generator)
    gradients = []
    for enabled in (False, True):
        leaf = logits.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = BiTemperedLoss()(leaf, target)
        gradients += torch.autograd.grad(value, leaf)
    assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


def test_temperatures_of_one_are_cross_entropy(batch):
    expected = cross_entropy(*batch, label_smoothing=0.1) - cross_entropy_floor(5, 0.1)
    assert_close(BiTemperedLoss(1.0, 1.0)(*batch), cross_entropy(*batch))
    assert_close(BiTemperedLoss(1.0, 1.0, 0.1)(*batch), expected)


def cross_entropy_floor(classes: int, smoothing: float) -> float:
    share = smoothing / classes
    label = 1 - smoothing + share
    return -label * np.log(label) - (classes - 1) * share * np.log(share)


def test_temperatures_near_one_approach_it_smoothly(batch):
    for dtype, gap, atol in ((torch.float64, 1e-9, 1e-6), (torch.float32, 1e-5, 1e-3)):
        near = BiTemperedLoss(1 - gap, 1 + gap, reduction="none")(batch[0].to(dtype), batch[1])
        assert_close(near, cross_entropy(*batch, reduction="none").to(dtype), atol=atol, rtol=0)


@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
def test_expected_loss_is_least_at_the_truth(batch, t1, t2):
    truth = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    logits = torch.from_numpy(tempered_log(truth.numpy(), t2)).requires_grad_()
    losses = BiTemperedLoss(t1, t2, reduction="none")(logits.expand(5, 5), torch.arange(5))
    (gradient,) = torch.autograd.grad((truth * losses).sum(), logits)
    assert_close(gradient, torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(BiTemperedLoss(t1, t2).predict(logits.detach()), truth)


@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
def test_gradient_is_the_escort_form(batch, t1, t2):
    logits, target = batch[0].requires_grad_(), batch[1]
    loss = BiTemperedLoss(t1, t2, reduction="sum")
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    p = loss.predict(logits.detach())
    pull = (p - torch.eye(5, dtype=torch.float64)[target]) * p ** (t2 - t1)
    escort = p**t2 / (p**t2).sum(dim=1, keepdim=True)
    assert_close(gradient, pull - escort * pull.sum(dim=1, keepdim=True), atol=1e-9, rtol=1e-7)


def test_gradients_in_logits_and_temperatures_equal_finite_differences(batch):
    inputs = [batch[0][:6].clone(), *(torch.tensor(t, dtype=torch.float64) for t in (0.6, 1.4, 0.1))]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda z, t1, t2, s: BiTemperedLoss(t1, t2, s)(z, batch[1][:6]), inputs)


def test_stacked_temperatures_equal_one_at_a_time(batch):
    t1, t2 = torch.tensor([0.5, 1.0, 0.9]), torch.tensor([1.0, 1.3, 2.0])
    stacked = torch.func.vmap(lambda a, b: BiTemperedLoss(a, b)(*batch))(t1, t2)
    alone = torch.stack([BiTemperedLoss(a, b)(*batch) for a, b in zip(t1.tolist(), t2.tolist(), strict=True)])
    assert_close(stacked, alone, atol=1e-6, rtol=1e-6)


def test_learnable_temperatures_may_start_at_one(batch):
    temperatures = [torch.tensor(1.0, requires_grad=True) for _ in range(2)]
    logits = batch[0].requires_grad_()
    BiTemperedLoss(*temperatures)(logits, batch[1]).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (logits, *temperatures))


def test_no_row_costs_more_than_the_bound():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    values = BiTemperedLoss(0.8, 1.2, reduction="none")(logits.expand(3, 3), torch.arange(3))
    values.sum().backward()
    assert (values <= 1 / (1 - 0.8)).all()
    assert logits.grad.isfinite().all()


def test_soft_labels_cost_nothing_where_they_are_met(batch):
    target = batch[0].softmax(dim=1)
    logits = torch.from_numpy(tempered_log(target.numpy(), 1.3))
    assert_close(BiTemperedLoss(0.6, 1.3)(logits, target).item(), 0.0, atol=1e-12, rtol=0)


def test_finite_support_is_refused():
    with pytest.raises(ValueError, match=r"t2 must be in \[1, 5\], got 0.8"):
        BiTemperedLoss(t2=0.8)


@pytest.mark.parametrize(("t1", "t2"), [(0.8, 1.2), (0.2, 2.0), (1.0, 1.5), (0.5, 1.0)])
def test_the_closed_form_gradient_is_the_derivative(generator, t1, t2):
    logits = 2 * torch.randn(7, 6, dtype=torch.float64, generator=generator)
    target = torch.randint(6, (7,), generator=generator)
    loss = BiTemperedLoss(t1, t2, iterations=20)
    value, gradient = loss.closed_form(6).value_and_gradient(logits, target)
    leaf = logits.clone().requires_grad_()
    each = loss.per_sample(leaf, target)
    assert_close(value, each.detach())
    assert_close(gradient, torch.autograd.grad(each.sum(), leaf)[0])


def test_there_is_no_closed_form_for_what_learns_or_is_smoothed():
    for loss in (BiTemperedLoss(torch.tensor(0.8)), BiTemperedLoss(label_smoothing=0.1)):
        assert loss.closed_form(3) is None


@pytest.mark.parametrize(("t1", "t2"), [(0.8, 1.2), (0.5, 2.0), (0.2, 1.05)])
def test_second_derivatives_are_those_of_the_solved_normaliser(generator, t1, t2):
    output = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.tensor([0, 3, 1])
    assert torch.autograd.gradgradcheck(lambda z: BiTemperedLoss(t1, t2)(z, target), output)
    learned = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (t1, t2)]
    assert torch.autograd.gradgradcheck(lambda a, b: BiTemperedLoss(a, b)(output.detach(), target), learned)
    step = 1e-6
    hessian = torch.func.hessian(lambda z: BiTemperedLoss(t1, t2)(z, target))(output.detach())
    first = torch.eye(12, dtype=torch.float64)[0].reshape(3, 4)
    moved = [torch.func.grad(BiTemperedLoss(t1, t2))(output.detach() + s * step * first, target) for s in (1, -1)]
    assert_close(hessian[0, 0], (moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-8)
