import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import CrossEntropyLoss, SmoothingConsistencyLoss
from lossworks.objective import Objective
from lossworks.objectives import NoiseConsistencyObjective
from lossworks.perturb import GaussianNoise


@pytest.fixture
def rows(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(4, (6,), generator=generator)


def test_is_the_loss_of_copies_made_by_hand(rows):
    model, x, target = rows
    found = NoiseConsistencyObjective(0.5, 3, lam=2.0, generator=torch.Generator().manual_seed(1))(model, x, target)
    noise = torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = torch.stack([model(x + 0.5 * noise[:, j]) for j in range(3)], dim=1)
    assert_close(found, SmoothingConsistencyLoss(2.0)(logits, target))


def test_one_copy_without_prices_is_training_in_noise(rows):
    found, plain = (
        objective(*rows)
        for objective in (
            NoiseConsistencyObjective(0.5, 1, 0.0, 0.0, generator=torch.Generator().manual_seed(1)),
            Objective(CrossEntropyLoss(), perturb=GaussianNoise(0.5, generator=torch.Generator().manual_seed(1))),
        )
    )
    assert_close(found, plain)


def test_in_evaluation_mode_the_copies_are_alike(rows):
    model, x, target = rows
    assert_close(NoiseConsistencyObjective(5.0, eta=0.0).eval()(model, x, target), cross_entropy(model(x), target))


def test_takes_images_and_models_that_normalise_their_batch(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    value = NoiseConsistencyObjective(0.1)(
        model, torch.rand(5, 2, 3, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    )
    value.backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[1].num_batches_tracked == 1


def test_micro_batches_without_noise_are_the_whole(rows):
    model, x, target = rows
    objective = NoiseConsistencyObjective(0.0, eta=0.3)
    (whole,) = torch.autograd.grad(objective(model, x, target), model[0].weight)
    parts = [(x[:2], target[:2]), (x[2:], target[2:])]
    model.zero_grad()
    for value in objective.micro_batches(model, parts):
        value.backward()
    assert_close(model[0].weight.grad, whole)


def test_a_price_on_disagreement_brings_the_copies_together(rows):
    model, x, target = rows
    draw = torch.Generator().manual_seed(2)
    probe = x[:, None] + torch.randn(6, 200, 3, generator=draw, dtype=torch.float64)
    spread = []
    for lam in (0.0, 20.0):
        trained = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        trained.load_state_dict(model.state_dict())
        step = torch.optim.Adam(trained.parameters(), lr=0.02)
        objective = NoiseConsistencyObjective(1.0, lam=lam, eta=0.0, generator=torch.Generator().manual_seed(3))
        for _ in range(60):
            step.zero_grad()
            objective(trained, x, target).backward()
            step.step()
        spread.append(float(trained(probe).softmax(dim=2).detach().var(dim=1).sum()))
    assert spread[1] < 0.7 * spread[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoiseConsistencyObjective(-0.1), "sigma"),
        (lambda: NoiseConsistencyObjective(num_samples=0), "num_samples"),
        (lambda: NoiseConsistencyObjective(lam=-1.0), "lam"),
        (
            lambda: NoiseConsistencyObjective()(nn.Identity(), torch.ones(2, 3).long(), torch.tensor([0, 1])),
            "x must be",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
