"""Asymmetric loss: the paper's equation, on one label and on several."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.testing import assert_close

from lossworks.losses import AsymmetricLoss, MultiLabelAsymmetricLoss


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(
        5, (32,), generator=generator
    )


def one_hot(target: torch.Tensor) -> torch.Tensor:
    return torch.eye(5, dtype=torch.float64)[target]


@pytest.mark.parametrize(("positive", "negative", "clip"), [(0.0, 4.0, 0.05), (1.0, 0.5, 0.2), (2.0, 2.0, 0.0)])
def test_equals_the_papers_equation_on_plain_probabilities(batch, positive, negative, clip):
    p, y = expit(batch[0].numpy()), one_hot(batch[1]).numpy()
    shifted = np.maximum(p - clip, 0)
    expected = -y * (1 - p) ** positive * np.log(p) - (1 - y) * shifted**negative * np.log(1 - shifted)
    settings = {"gamma_positive": positive, "gamma_negative": negative, "clip": clip}
    value = MultiLabelAsymmetricLoss(**settings, reduction="none")(batch[0], one_hot(batch[1]))
    assert_close(value, torch.from_numpy(expected))
    assert_close(AsymmetricLoss(**settings, reduction="none")(*batch), torch.from_numpy(expected.sum(axis=1)))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_without_focusing_and_clip_is_binary_cross_entropy(batch, scale):
    logits, target = (scale * batch[0]).float(), batch[1]
    expected = bce(logits, one_hot(target).float(), reduction="none")
    assert_close(MultiLabelAsymmetricLoss(0.0, 0.0, 0.0, reduction="none")(logits, one_hot(target)), expected)
    assert_close(AsymmetricLoss(0.0, 0.0, 0.0, reduction="none")(logits, target), expected.sum(dim=1))


def test_absent_labels_below_the_clip_cost_nothing_and_have_no_gradient():
    logits = torch.tensor([[-3.0, -5.0, -1e4]], requires_grad=True)
    loss = MultiLabelAsymmetricLoss(gamma_negative=1.0, clip=0.05, reduction="sum")(logits, torch.zeros(1, 3))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_tensor_settings_equal_numbers(batch, clip):
    numbers = (1.0, 3.0, clip)
    tensors = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in numbers]
    value = AsymmetricLoss(*tensors)(*batch)
    assert_close(value, AsymmetricLoss(*numbers)(*batch))
    value.backward()
    assert all(tensor.grad.isfinite() for tensor in tensors)


def test_settings_are_learnable(batch):
    settings = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (0.7, 2.5, 0.1)]
    assert torch.autograd.gradcheck(lambda *s: AsymmetricLoss(*s)(*batch), settings)


def test_the_closed_form_gradient_is_the_derivative(generator):
    logits = 3 * torch.randn(7, 6, dtype=torch.float64, generator=generator)
    target = torch.randint(6, (7,), generator=generator)
    for loss in (AsymmetricLoss(), AsymmetricLoss(1.0, 2.0, 0.0), AsymmetricLoss(torch.tensor(0.5), 3.0)):
        value, gradient = loss.closed_form(6).value_and_gradient(logits, target)
        leaf = logits.clone().requires_grad_()
        each = loss.per_sample(leaf, target)
        assert_close(value, each.detach())
        assert_close(gradient, torch.autograd.grad(each.sum(), leaf)[0])


@pytest.mark.parametrize("part", [AsymmetricLoss, MultiLabelAsymmetricLoss])
def test_a_clip_of_1_leaves_nothing_and_is_refused(part):
    with pytest.raises(ValueError, match=r"clip must be .*\[0, 1\), got 1"):
        part(clip=1.0)
