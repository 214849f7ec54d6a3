"""Every loss that says it is a function of a row's softmax is one."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from lossworks.catalog import parts
from lossworks.roles import Loss, SoftmaxForm
from lossworks.testing import build, example
from lossworks.testing.inputs import driven

FORMS = [
    pytest.param(loss, id=f"{name}-{number}")
    for name, entry in parts().items()
    if inspect.isclass(entry.part) and issubclass(entry.part, Loss) and entry.part.kind.has_classes
    for number, loss in enumerate(build(entry.part, setting) for setting in driven(entry.part))
    if isinstance(loss.closed_form(5), SoftmaxForm)
]


@pytest.mark.parametrize("loss", FORMS)
def test_the_form_gives_the_loss(loss):
    output, target, _ = example(loss, scale=3.0)
    form = loss.closed_form(output.shape[1])
    scores = output * form.scale
    if form.shift is not None:
        scores = scores + form.shift
    if form.handicap is not None:
        handicap = torch.as_tensor(form.handicap, dtype=scores.dtype)
        rows = torch.arange(len(scores))
        scores[rows, target] += handicap[target] if handicap.ndim else handicap
    surprise = -(scores - scores.exp().sum(dim=1, keepdim=True).log())
    own = surprise.gather(1, target[:, None]).squeeze(1)
    value = form.value(own, surprise.sum(dim=1)) if form.reads_total else form.value(own)
    assert_close(value, loss.per_sample(output, target))


def test_most_losses_of_classes_have_it():
    assert len({param.id.split("-")[0] for param in FORMS}) >= 18
