"""Cross-entropy is torch's, also where its smoothing is a tensor."""

import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 5, dtype=torch.float64, generator=generator), torch.randint(5, (32,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_tensor_smoothing_equals_torch(batch, smoothing, soft):
    logits, target = batch
    target = logits.flip(0).softmax(dim=1) if soft else target
    expected = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    assert_close(CrossEntropyLoss(smoothing, reduction="none")(logits, target), expected)
    assert_close(CrossEntropyLoss(torch.tensor(smoothing).double(), reduction="none")(logits, target), expected)


def test_equals_the_negative_log_softmax_of_scipy(batch):
    logits, target = batch
    expected = -log_softmax(logits.numpy(), axis=1)[range(32), target.numpy()]
    assert_close(CrossEntropyLoss(reduction="none")(logits, target), torch.from_numpy(expected))


def test_smoothing_is_learnable(batch):
    logits, target = batch
    smoothing = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: CrossEntropyLoss(s)(logits, target), smoothing)


def test_smoothing_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 1.5"):
        CrossEntropyLoss(1.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_the_closed_form_gradient_is_autograd_s(smoothing, generator):
    logits = torch.randn(7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(4, (7,), generator=generator)
    loss = CrossEntropyLoss(smoothing, reduction="sum")
    (wanted,) = torch.autograd.grad(loss(logits, target), logits)
    assert_close(loss.closed_form(4).gradient(logits.detach(), target), wanted)
