import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.comparison.train.risk import StackedObjective
from lossworks.losses import CrossEntropyLoss
from lossworks.select import SmallLossGMMSelector
from lossworks.weights import SmallLossWeights

ROWS = 40


@pytest.fixture
def losses(generator):
    """Three quarters of the rows fit, the others do not."""
    high = torch.arange(ROWS) % 4 == 0
    return torch.where(high, 4.0, 0.3) + 0.1 * torch.rand(ROWS, generator=generator)


def test_they_are_the_selectors_answer_to_the_last_losses_with_mean_one(losses):
    weights, index = SmallLossWeights(ROWS, warmup=0.5), torch.arange(ROWS)
    assert_close(weights(losses, index=index), torch.ones(ROWS))
    weights.set_progress(0.49)
    assert_close(weights(losses, index=index), torch.ones(ROWS))
    weights.set_progress(0.5)
    clean = (~SmallLossGMMSelector()(losses.double())).float()
    assert clean.sum() == 30
    assert_close(weights(losses, index=index), clean * ROWS / 30)
    assert_close(weights.kept.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_the_mixture_is_fitted_anew_when_its_time_has_come_and_not_before(losses):
    weights, index = SmallLossWeights(ROWS, warmup=0.0, every=0.2), torch.arange(ROWS)
    weights(losses, index=index)
    weights.set_progress(0.3)
    first = weights.kept.clone()
    weights(losses.flip(0), index=index)
    weights.set_progress(0.45)
    assert torch.equal(weights.kept, first)
    weights.set_progress(0.5)
    assert torch.equal(weights.kept, first.flip(0))
    weights(losses, index=index)
    weights.set_progress(0.0)  # another training begins
    assert torch.equal(weights.kept, first)


def test_rows_that_were_not_seen_count_as_clean(losses):
    weights = SmallLossWeights(ROWS + 2, warmup=0.0)
    weights.set_progress(0.0)
    assert torch.equal(weights.kept, torch.ones(ROWS + 2, dtype=torch.float64))
    weights(losses, index=torch.arange(ROWS))
    weights.set_progress(0.5)
    found = weights(torch.zeros(3), index=torch.tensor([0, ROWS, -1]))
    assert_close(found, torch.tensor([0.0, 1.0, 1.0]) * (ROWS + 2) / 32)


def test_nothing_is_remembered_in_evaluation(losses):
    weights = SmallLossWeights(ROWS).eval()
    weights(losses, index=torch.arange(ROWS))
    assert bool(weights.losses.isinf().all())


def test_in_a_loop_it_leaves_out_mostly_wrong_labels():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 5, generator=generator)
    right = (x[:, 0] + x[:, 1] > 0).long()
    wrong = torch.rand(400, generator=generator) < 0.2
    y = torch.where(wrong, 1 - right, right)
    torch.manual_seed(0)
    model = nn.Linear(5, 2)
    objective = lw.Objective(CrossEntropyLoss(), SmallLossWeights(400))
    step = torch.optim.Adam(model.parameters(), lr=0.05)
    for number in range(150):
        objective.set_progress(number / 150)
        rows = torch.randint(400, (64,), generator=generator)
        step.zero_grad()
        objective(model, x[rows], y[rows], index=rows).backward()
        step.step()
    left_out = objective.weights.kept == 0
    assert wrong[left_out].float().mean() > 0.9
    assert left_out[wrong].float().mean() > 0.5


def test_each_of_stacked_models_leaves_out_its_own_rows(losses):
    stack = StackedObjective(
        [lw.Objective(CrossEntropyLoss(), SmallLossWeights(ROWS)) for _ in range(2)], torch.device("cpu")
    )
    stack.buffers["weights.losses"] = torch.stack([losses, losses.flip(0)]).double()
    stack.set_progress(1.0)
    kept = stack.buffers["weights.kept"]
    assert torch.equal(kept[0] == 0, losses > 1)
    assert torch.equal(kept[1], kept[0].flip(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"threshold": 1.0}, "threshold"),
        ({"warmup": 1.5}, "warmup"),
        ({"every": 0.0}, "every"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SmallLossWeights(**{"num_samples": ROWS, **arguments})


def test_it_wants_the_rows_numbers(losses):
    with pytest.raises(ValueError, match="needs index="):
        SmallLossWeights(ROWS)(losses)
    with pytest.raises(ValueError, match=r"index must be in \[0, 40\)"):
        SmallLossWeights(ROWS)(losses[:1], index=torch.tensor([40]))
