import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close

from lossworks.objectives import EMATrajectoryObjective


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def batch(generator):
    return torch.randn(9, 4, generator=generator, dtype=torch.float64), torch.arange(9) % 3


def other(model):
    """The same model with other weights."""
    changed = copy.deepcopy(model)
    for parameter in changed.parameters():
        parameter.data *= 1.5
    return changed


def test_trains_as_a_loop_that_keeps_the_average_by_hand(model, batch):
    x, y = batch
    twin, decay = copy.deepcopy(model), 0.8
    by_hand = {name: value.clone() for name, value in model.state_dict().items()}
    past_model = copy.deepcopy(model).eval()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    objective = EMATrajectoryObjective(average, lam=0.5, tau=3.0)
    optimizers = [torch.optim.SGD(trained.parameters(), lr=0.3) for trained in (model, twin)]
    for step in range(4):
        optimizers[0].zero_grad()
        objective(model, x, y).backward()
        optimizers[0].step()
        average.update_parameters(model)

        optimizers[1].zero_grad()
        for name, value in past_model.named_parameters():
            value.data.copy_(by_hand[name])
        with torch.no_grad():
            past = (past_model(x) / 3).softmax(dim=1)
        output = twin(x)
        price = 9 * kl_div((output / 3).log_softmax(dim=1), past, reduction="batchmean")
        (cross_entropy(output, y) + 0.5 * price).backward()
        optimizers[1].step()
        for name, value in twin.named_parameters():
            new = value.detach()
            by_hand[name] = new.clone() if step == 0 else decay * by_hand[name] + (1 - decay) * new
        for name, value in past_model.named_buffers():
            value.copy_(dict(twin.named_buffers())[name])
    for own, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(own, expected)


def test_a_model_that_is_its_average_pays_nothing(model, batch):
    x, y = batch
    model.eval()
    objective = EMATrajectoryObjective(copy.deepcopy(model))
    value, plain = objective(model, x, y), cross_entropy(model(x), y)
    assert_close(value, plain)
    gradients = (torch.autograd.grad(each, list(model.parameters())) for each in (value, plain))
    for own, expected in zip(*gradients, strict=True):
        assert_close(own, expected)
    assert bool(EMATrajectoryObjective(other(model))(model, x, y) > plain)


def test_without_a_price_it_is_cross_entropy(model, batch):
    x, y = batch
    assert_close(EMATrajectoryObjective(other(model), lam=0.0)(model, x, y), cross_entropy(model(x), y))


def test_the_average_is_left_as_it_is_and_is_saved(model, batch):
    x, y = batch
    average = other(model).train()
    before = copy.deepcopy(average.state_dict())
    objective = EMATrajectoryObjective(average)
    objective(model, x, y).backward()
    assert average.training
    assert all(parameter.grad is None for parameter in average.parameters())
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())
    fresh = EMATrajectoryObjective(copy.deepcopy(model))
    fresh.load_state_dict(objective.state_dict())
    model.eval()
    assert_close(fresh(model, x, y), objective(model, x, y), atol=0, rtol=0)


def test_micro_batches_and_ignored_rows_count_as_they_should(model, batch):
    x, y = batch
    model.eval()
    y = torch.where(torch.arange(9) == 4, -100, y)
    objective = EMATrajectoryObjective(other(model))
    whole = objective(model, x, y)
    kept = y >= 0
    assert_close(objective(model, x[kept], y[kept]), whole)
    parts = [{"x": x[rows], "target": y[rows]} for rows in torch.arange(9).split(4)]
    assert_close(torch.stack(list(objective.micro_batches(model, parts))).sum(), whole)


def test_every_place_of_a_map_is_a_row(generator):
    model, average = nn.Conv2d(2, 3, 1).double(), nn.Conv2d(2, 3, 1).double()
    x = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (2, 4, 5), generator=generator)
    each = EMATrajectoryObjective(average, reduction="none")(model, x, y)
    places = x.movedim(1, -1).reshape(-1, 2, 1, 1)
    flat = EMATrajectoryObjective(average, reduction="none")(model, places, y.reshape(-1, 1, 1))
    assert_close(each.flatten(), flat.flatten())


def test_bad_arguments_are_named(model, batch):
    x, y = batch
    for call, message in (
        (lambda: EMATrajectoryObjective(3), "average must be a module"),
        (lambda: EMATrajectoryObjective(model, lam=-1.0), "lam"),
        (lambda: EMATrajectoryObjective(model, tau=0.0), "tau"),
        (lambda: EMATrajectoryObjective(nn.Linear(4, 2).double())(model, x, y), "average's output must have the shape"),
        (lambda: EMATrajectoryObjective(model)(nn.Flatten(0), x, y), "model must give logits"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
