"""Penalties that read the features which a model gives beside its output."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.losses import CrossEntropyLoss
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import PGD, TRADES


class Square(lw.Penalty):
    """The mean square of the features."""

    reads_features = True

    def forward(self, model, *, features=None):
        assert features is not None
        return features.square().mean()


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        features = self.body(x).tanh()
        return self.head(features), features


@pytest.fixture
def wide():
    return Wide()


def slopes(value, model):
    return torch.autograd.grad(value, list(model.parameters()))


def test_they_see_those_of_the_rows_that_are_trained_on(wide, batch):
    x, target = batch
    objective = lw.Objective(
        CrossEntropyLoss(),
        perturb=PGD(0.1, steps=2, random_start=False),
        penalties=[Square(), WeightMagnitudePenalty()],
    )
    plain = lw.Objective(CrossEntropyLoss(), perturb=PGD(0.1, steps=2, random_start=False))

    class Logits(nn.Module):
        def forward(self, rows):
            return wide(rows)[0]

    moved = plain._perturbed(Logits(), x, target, None)
    logits, features = wide(moved)
    wanted = CrossEntropyLoss()(logits, target) + features.square().mean() + WeightMagnitudePenalty()(wide)
    value = objective(wide, x, target)
    assert_close(value, wanted)
    assert_close(slopes(value, wide), slopes(wanted, wide))


def test_beside_a_price_they_see_those_of_the_clean_rows(wide, batch):
    x, target = batch
    torch.manual_seed(0)
    with_price = lw.Objective(CrossEntropyLoss(), perturb=TRADES(1.0, PGD(0.1, steps=1)), penalties=[Square()])
    value = with_price(wide, x, target)
    torch.manual_seed(0)
    assert_close(value - wide(x)[1].square().mean(), _without(with_price, wide, x, target))


def _without(objective, wide, x, target):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = wide

        def forward(self, rows):
            return self.wide(rows)[0]

    return lw.Objective(CrossEntropyLoss(), perturb=objective.perturb)(Logits(), x, target)


def test_micro_batches_of_one_size_add_up(wide, batch):
    x, target = batch
    objective = lw.Objective(CrossEntropyLoss(), penalties=[Square()])
    parts = [(x[rows], target[rows]) for rows in torch.arange(10).split(5)]
    values = list(objective.micro_batches(wide, parts))
    whole = objective(wide, x, target)
    assert_close(sum(values), whole)
    assert_close(slopes(sum(values), wide), slopes(whole, wide))


def test_a_model_without_features_is_told(batch):
    with pytest.raises(TypeError, match=r"model must give a pair \(output, features\) .*, got Tensor"):
        lw.Objective(CrossEntropyLoss(), penalties=[Square()])(nn.Linear(4, 3).double(), *batch)
