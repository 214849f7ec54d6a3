"""Rows of sample weight 0 are as if absent to every weighting in every mode, whatever these rows hold."""

import math

import pytest
import torch
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import CrossEntropyLoss
from lossworks.weights import (
    KLDRO,
    ChiSquareDRO,
    CompositionalEMA,
    CVaR,
    GroupDRO,
    PMDROWeights,
    SmallLossWeights,
    TrimmedWeights,
)

ROWS = 9
COUNTS = torch.tensor([3.0, 4.0, 5.0])
MODES = {
    "KLDRO": KLDRO,
    "KLDRO-radius": lambda: KLDRO(radius=0.3),
    "KLDRO-radius-0": lambda: KLDRO(radius=0.0),
    "KLDRO-radius-9": lambda: KLDRO(radius=9.0),
    "KLDRO-radius-tensor": lambda: KLDRO(radius=torch.tensor(0.3)),
    "CVaR": lambda: CVaR(0.3),
    "CVaR-tensor": lambda: CVaR(torch.tensor(0.3)),
    "CVaR-smoothed": lambda: CVaR(0.3, 0.3),
    "ChiSquareDRO": ChiSquareDRO,
    "ChiSquareDRO-tensor": lambda: ChiSquareDRO(torch.tensor(0.5)),
    "TrimmedWeights": TrimmedWeights,
    "CompositionalEMA": CompositionalEMA,
    "PMDROWeights": lambda: PMDROWeights(ROWS),
    "SmallLossWeights": lambda: SmallLossWeights(ROWS),
    "GroupDRO": lambda: GroupDRO(3, 0.5),
    "GroupDRO-worst": lambda: GroupDRO(3, math.inf),
    "GroupDRO-adjusted": lambda: GroupDRO(3, 0.5, 1.0, COUNTS),
}


def columns_of(keep):
    weight = torch.where(keep, torch.linspace(0.5, 2, ROWS, dtype=torch.float64), 0)
    rows = torch.arange(ROWS)
    return {"target": (rows * rows) % 3, "index": rows, "group": rows % 3, "sample_weight": weight}


@pytest.mark.parametrize("bad", [5.0, math.nan, math.inf])
@pytest.mark.parametrize("lost", ["some rows", "a whole group"])
@pytest.mark.parametrize("mode", MODES)
def test_they_change_no_value_no_gradient_and_no_memory(generator, mode, lost, bad):
    logits = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
    keep = torch.arange(ROWS) % (4 if lost == "some rows" else 3) != 1
    columns = columns_of(keep)
    whole, present = Objective(CrossEntropyLoss(), MODES[mode]()), Objective(CrossEntropyLoss(), MODES[mode]())
    leaf, own = torch.where(keep[:, None], logits, bad).requires_grad_(), logits[keep].requires_grad_()
    value = whole.risk(leaf, **columns)
    wanted = present.risk(own, **{name: column[keep] for name, column in columns.items()})
    assert_close(value, wanted)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert_close(gradient[keep], torch.autograd.grad(wanted, own)[0])
    assert not bool(gradient[~keep].any())
    assert_close(list(whole.buffers()), list(present.buffers()))


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_such_rows_has_the_value_0_and_is_not_remembered(mode):
    objective, fresh = Objective(CrossEntropyLoss(), MODES[mode]()), MODES[mode]()
    leaf = torch.full((ROWS, 3), math.nan, dtype=torch.float64, requires_grad=True)
    value = objective.risk(leaf, **columns_of(torch.zeros(ROWS, dtype=torch.bool)))
    assert value == 0
    assert not bool(torch.autograd.grad(value, leaf)[0].any())
    assert_close(list(objective.buffers()), list(fresh.buffers()), atol=0, rtol=0)
