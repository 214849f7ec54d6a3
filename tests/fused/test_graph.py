"""Whatever the graph around it is: inputs that hang together, what changes between the passes, several gradients."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.fused import linear_kl, linear_loss
from lossworks.losses import CrossEntropyLoss, FocalLoss, TruncatedGeneralizedCrossEntropyLoss

N, D, C = 6, 4, 5


@pytest.fixture
def layer(generator):
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, weight, torch.randint(C, (N,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_that_were_computed_from_one_another_count_once(layer, reduction, create_graph):
    _, weight, target = layer
    gamma = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def value(form):
        hidden = torch.tanh(weight[target]) * gamma
        importance = 1 + hidden[:, 0].square()
        return (form(hidden, importance, FocalLoss(gamma=gamma, reduction=reduction)) ** 2).sum()

    def fused(hidden, importance, loss):
        return linear_loss(hidden, weight, target, loss, sample_weight=importance, reduction=reduction, chunk=2)

    def plain(hidden, importance, loss):
        return loss(hidden @ weight.T, target, sample_weight=importance)

    found, wanted = (
        torch.autograd.grad(value(form), (weight, gamma), create_graph=create_graph) for form in (fused, plain)
    )
    assert_close(found, wanted)
    if create_graph:
        bent, expected = (torch.autograd.grad(sum(g.square().sum() for g in pair), weight) for pair in (found, wanted))
        assert_close(bent, expected)


def test_what_has_changed_in_place_is_refused_and_what_was_replaced_is_as_it_was(layer, generator):
    hidden, weight, target = layer
    soft = torch.softmax(torch.randn(N, C, generator=generator, dtype=torch.float64), dim=1)
    value = linear_loss(hidden, weight, soft, CrossEntropyLoss(), reduction="none").mean()
    soft.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()

    gamma = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    value = linear_loss(hidden, weight, target, FocalLoss(gamma=gamma), reduction="none").mean()
    with torch.no_grad():
        gamma.fill_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()

    teacher = torch.randn(C, 3, generator=generator, dtype=torch.float64)
    value = linear_kl(hidden, weight, hidden.detach()[:, :3], teacher, reduction="none").mean()
    teacher.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()

    loss = TruncatedGeneralizedCrossEntropyLoss(k=0.3)
    expected = []
    for form in ("plain", "fused"):
        loss.set_progress(0.0)
        if form == "plain":
            value = loss(hidden @ weight.T, target)
        else:
            value = linear_loss(hidden, weight, target, loss, reduction="none").mean()
        loss.set_progress(1.0)
        expected.append(torch.autograd.grad(value, (hidden, weight)))
    assert_close(*expected)
    assert float(loss.progress) == 1


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_upstream_gradients_may_come_as_one(layer, generator, reduction):
    hidden, weight, target = layer
    value = linear_loss(hidden, weight, target, CrossEntropyLoss(), reduction=reduction)
    upstream = torch.randn(3, *value.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(value, (hidden, weight), upstream, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(value, (hidden, weight), one, retain_graph=True) for one in upstream]
    assert_close(list(found), [torch.stack(several) for several in zip(*one_by_one, strict=True)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": torch.full((N, C), 1 / C, requires_grad=True)}, "target must not require a gradient"),
        ({"weight": torch.zeros(0, D)}, r"weight must have at least one class, got \(0, 4\)"),
        ({"weight": torch.zeros(C, D, device="meta")}, "weight must be on cpu as hidden is, got meta"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    given = {"hidden": torch.zeros(N, D), "weight": torch.zeros(C, D), "target": torch.zeros(N).long()} | changed
    with pytest.raises(ValueError, match=message):
        linear_loss(given["hidden"], given["weight"], given["target"], CrossEntropyLoss())
