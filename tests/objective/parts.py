"""Parts that look at the whole batch or count what they are asked, and how a batch is cut."""

import pytest
import torch
from torch import nn

import lossworks as lw
from lossworks.losses import CrossEntropyLoss


class Hardest(lw.Weighting):
    """Weights that are the losses themselves: they couple the batch."""

    couples_batch = True

    def forward(self, losses, *, index=None, group=None, target=None):
        return losses / losses.mean()


class Spread(lw.BatchLoss):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, output, target, *, sample_weight=None):
        return self.scale * output[:, 0].var() + output.gather(1, target[:, None]).var()


def cut(batch, sizes):
    pieces = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: pieces[name][number] for name in batch} for number in range(len(sizes))]


class Counting(CrossEntropyLoss):
    """It counts its calls in a buffer that it replaces, and draws from a generator of its own."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.calls = torch.zeros(())
        self.generator = torch.Generator().manual_seed(0)

    def per_sample(self, output, target):
        self.calls = self.calls + 1
        noise = torch.rand(len(output), generator=self.generator, dtype=output.dtype)
        return noise * super().per_sample(output, target)


def assert_refused(objective, call):
    """The call raises, and no buffer has moved."""
    held = [buffer.clone() for buffer in objective.buffers()]
    with pytest.raises((ValueError, TypeError)):
        call()
    assert all(torch.equal(buffer, before) for buffer, before in zip(objective.buffers(), held, strict=True))
