import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.losses import CrossEntropyLoss
from lossworks.penalties import WeightMagnitude
from lossworks.perturb import GaussianNoise
from lossworks.weights import ClassBalanced, SampleWeights


@pytest.fixture
def batch(generator):
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (10,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def test_is_the_formula_term_by_term(model, batch):
    x, target = batch
    counts = torch.bincount(target, minlength=3).double()
    objective = lw.Objective(
        CrossEntropyLoss(), ClassBalanced(counts), GaussianNoise(0.2), [WeightMagnitude(0.1), WeightMagnitude(0.2)]
    )
    torch.manual_seed(1)
    value = objective(model, x, target)
    torch.manual_seed(1)
    moved = x + 0.2 * torch.randn_like(x)
    losses = nn.functional.cross_entropy(model(moved), target, reduction="none")
    weights = (10 / (3 * counts))[target]
    by_hand = (weights * losses).sum() / 10 + 0.3 * model.weight.pow(2).sum() / 2
    assert_close(value, by_hand)


def test_micro_batches_with_total_sum_to_the_whole(model, batch):
    x, target = batch
    objective = lw.Objective(CrossEntropyLoss(), SampleWeights(torch.arange(1.0, 11).double()))
    index, own = torch.arange(10), torch.linspace(0.1, 2, 10).double()
    whole = objective(model, x, target, index=index, sample_weight=own)
    parts = sum(
        objective(model, x[rows], target[rows], index=index[rows], sample_weight=own[rows], total=own.sum())
        for rows in index.split(3)
    )
    assert_close(parts, whole)


def test_ignored_rows_have_no_weight(model, batch):
    x, target = batch
    counts = torch.bincount(target, minlength=3).double()
    objective = lw.Objective(CrossEntropyLoss(), ClassBalanced(counts))
    masked = torch.where(torch.arange(10) < 4, -100, target)
    kept = objective(model, x[4:], target[4:])
    assert_close(objective(model, x, masked), kept)


def test_no_gradient_flows_through_the_weights(batch):
    class Hardest(lw.Weighting):
        def forward(self, losses, **_):
            return losses / losses.mean()

    _, target = batch
    logits = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    wanted = torch.autograd.grad(((losses / losses.mean()).detach() * losses).mean(), logits)[0]
    value = lw.Objective(CrossEntropyLoss(), Hardest()).risk(logits, target)
    assert_close(torch.autograd.grad(value, logits)[0], wanted)


def test_saves_and_loads_as_one(batch):
    counts = torch.tensor([3.0, 4.0, 3.0])
    one = lw.Objective(CrossEntropyLoss(), ClassBalanced(counts))
    other = lw.Objective(CrossEntropyLoss(), ClassBalanced(counts.flip(0) * 2))
    other.load_state_dict(one.state_dict())
    logits = torch.randn(10, 3)
    assert_close(other.risk(logits, batch[1]), one.risk(logits, batch[1]))


def test_parts_in_wrong_roles_are_named():
    with pytest.raises(TypeError, match="loss must be a lossworks loss part, got CrossEntropyLoss"):
        lw.Objective(nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match="weights"):
        lw.Objective(CrossEntropyLoss(), weights=CrossEntropyLoss())
    with pytest.raises(TypeError, match="perturb"):
        lw.Objective(CrossEntropyLoss(), perturb=CrossEntropyLoss())
    with pytest.raises(TypeError, match="penalties"):
        lw.Objective(CrossEntropyLoss(), penalties=[CrossEntropyLoss()])


def test_a_weighting_on_a_batch_loss_is_refused():
    class Spread(lw.BatchLoss):
        def forward(self, output, target, sample_weight=None):
            return output.var()

    with pytest.raises(TypeError, match="Spread couples the whole batch"):
        lw.Objective(Spread(), weights=lw.weights.Uniform())
    assert lw.Objective(Spread())(nn.Linear(2, 1), torch.ones(3, 2), torch.ones(3)) == 0


def test_a_missing_argument_is_named(batch):
    with pytest.raises(ValueError, match="SampleWeights needs index="):
        lw.Objective(CrossEntropyLoss(), SampleWeights(torch.ones(10))).risk(torch.zeros(10, 3), batch[1])
