"""What a loss offers in closed form, for the fused losses and the engine, is its value and autograd's gradient."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from lossworks.catalog import parts
from lossworks.losses import AdaptiveLDRLoss, CrossEntropyLoss, FocalLoss, LDAMLoss, LDRLoss
from lossworks.roles import Loss, RowForm, SoftmaxForm
from lossworks.testing import build
from lossworks.testing.inputs import driven

ROWS, CLASSES = 7, 5


def offered():
    """Every loss of the catalog that has a closed form in a setting of its own, and some in further ones."""
    for name, entry in parts().items():
        if inspect.isclass(entry.part) and issubclass(entry.part, Loss) and entry.part.kind.has_classes:
            for number, setting in enumerate(driven(entry.part)):
                loss = build(entry.part, setting)
                if loss.closed_form(CLASSES) is not None:
                    yield pytest.param(loss, id=f"{name}-{number}")
    further = {
        "l1_mean": LDRLoss(lam=0.5, normalize="l1_mean"),
        "softplus_mean": LDRLoss(lam=2.0, normalize="softplus_mean"),
        "adaptive-softplus_mean": AdaptiveLDRLoss(ROWS, normalize="softplus_mean"),
        "adaptive-as_they_are": AdaptiveLDRLoss(ROWS, normalize=None),
        "smoothed": CrossEntropyLoss(0.1),
        "tensors": LDRLoss(torch.tensor(2.0), torch.tensor(0.3)),
        "by_class": LDAMLoss(torch.tensor([9.0, 5.0, 4.0, 2.0, 1.0]), scale=torch.tensor(3.0)),
    }
    yield from (pytest.param(loss, id=name) for name, loss in further.items())


@pytest.mark.parametrize("loss", list(offered()))
def test_the_closed_form_is_the_value_and_its_derivative(loss, generator):
    logits = 3 * torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=generator)
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    index = {"index": torch.arange(ROWS)} if loss.needs_index else {}
    remembered = {"memory": loss.recall(logits, target, **index)} if index else {}
    given = logits.clone()
    form = loss.closed_form(CLASSES)
    value, gradient = form.value_and_gradient(given, target, **remembered)
    assert_close(given, logits, rtol=0, atol=0)
    assert not value.requires_grad
    assert not gradient.requires_grad
    leaf = logits.clone().requires_grad_()
    each = loss.per_sample(leaf, target, **index, **remembered)
    (wanted,) = torch.autograd.grad(each.sum(), leaf)
    assert_close(value, each.detach())
    assert_close(gradient, wanted)
    if form.gradient is not None:
        assert_close(form.gradient(logits, target), wanted)


def test_a_loss_with_a_memory_asks_for_it():
    with pytest.raises(ValueError, match="memory must be what the loss's recall gave for these rows, got None"):
        AdaptiveLDRLoss(1).closed_form(3).value_and_gradient(torch.zeros(1, 3), torch.tensor([0]))


def test_a_loss_that_is_another_than_the_one_it_inherits_from_has_no_closed_form_but_its_own():
    class Doubled(CrossEntropyLoss):
        def per_sample(self, output, target):
            return 2 * super().per_sample(output, target)

    class Halved(Doubled):
        def closed_form(self, num_classes):
            return SoftmaxForm(lambda own: own / 2)

        def per_sample(self, output, target):
            return super().per_sample(output, target) / 4

    assert Doubled().closed_form(3) is None
    assert Halved().closed_form(3) is not None


def test_a_form_says_whether_gradients_in_what_learns_can_be_had_beside_it():
    learned = torch.tensor(2.0, requires_grad=True)
    assert FocalLoss(learned).closed_form(3).follows_learning
    assert LDRLoss(torch.tensor(2.0)).closed_form(3).follows_learning
    assert not LDRLoss(learned).closed_form(3).follows_learning
    assert not RowForm(lambda output, target: (output, target)).follows_learning
