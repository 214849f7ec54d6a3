import pytest
import torch
from torch import nn

import lossworks as lw


@pytest.fixture
def batch(generator):
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (10,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


REMEMBERING = {
    "no weights": lambda: None,
    "PMDRO": lambda: lw.weights.PMDROWeights(10),
    "GroupDRO": lambda: lw.weights.GroupDRO(2),
    "CompositionalEMA": lw.weights.CompositionalEMA,
}


@pytest.fixture(params=REMEMBERING)
def remembering(request):
    return lw.Objective(lw.losses.AdaptiveLDRLoss(num_samples=10), REMEMBERING[request.param]())


@pytest.fixture
def right(batch):
    return {
        "x": batch[0],
        "target": batch[1],
        "index": torch.arange(10),
        "group": torch.arange(10) % 2,
        "sample_weight": torch.ones(10),
    }
