import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.certify import SmoothedEpsilonSchedule, certified_cross_entropy, fused_certified_cross_entropy
from lossworks.perturb import PGD

LOSSES = (certified_cross_entropy, fused_certified_cross_entropy)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double()


@pytest.fixture
def rows(generator):
    return torch.randn(30, 5, generator=generator, dtype=torch.float64), torch.arange(30) % 4


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_radius_it_is_cross_entropy(model, rows, loss):
    x, y = rows
    assert_close(loss(model, x, y, 0.0), cross_entropy(model(x), y, reduction="none"))


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("eps", [0.02, 0.2, 1.0])
def test_no_attack_reaches_it(model, rows, kappa, eps, generator):
    x, y = rows

    def risk(z):
        return cross_entropy(model(z), y, reduction="none")

    worst = risk(PGD(eps, steps=30, restarts=3, generator=generator)(risk, x))
    corners = x + eps * torch.randn(500, *x.shape, generator=generator, dtype=torch.float64).sign()
    worst = torch.maximum(worst, torch.stack([risk(corner) for corner in corners]).amax(dim=0))
    assert bool((certified_cross_entropy(model, x, y, eps, kappa=kappa) >= worst - 1e-9).all())
    assert bool((fused_certified_cross_entropy(model, x, y, eps) >= worst - 1e-9).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_of_an_affine_model_the_margins_are_exact(rows, loss):
    x, y = rows
    model = nn.Linear(5, 2).double()
    margin = (model.weight[0] - model.weight[1]) @ x.T + model.bias[0] - model.bias[1]
    margin = torch.where(y % 2 == 0, margin, -margin)
    least = margin - 0.3 * (model.weight[0] - model.weight[1]).abs().sum()
    options = {"kappa": 1.0} if loss is certified_cross_entropy else {}
    found, worst = loss(model, x, y % 2, 0.3, **options), (1 + (-least).exp()).log()
    assert bool((found >= worst - 1e-12).all())
    if options:
        assert_close(found, worst)


def test_trains(model, rows):
    x, y = rows
    step = torch.optim.Adam(model.parameters(), lr=0.01)
    before = float(certified_cross_entropy(model, x, y, 0.05).detach().mean())
    for number in range(40):
        step.zero_grad()
        loss = LOSSES[number % 2](model, x, y, 0.05).mean()
        loss.backward()
        step.step()
    assert float(certified_cross_entropy(model, x, y, 0.05).detach().mean()) < before - 0.1


def test_the_schedule_is_smooth_and_ends_at_the_radius():
    schedule = SmoothedEpsilonSchedule(0.3, start=0.1, end=0.6)
    values = torch.tensor([schedule(k / 1000) for k in range(1001)], dtype=torch.float64)
    assert float(values[:101].abs().max()) == 0
    assert values[600:].tolist() == [0.3] * 401
    steps = values.diff()
    assert bool((steps >= -1e-15).all())
    assert float(steps[:599].diff().abs().max()) < 1e-4  # no kink before the end
    assert_close(steps[300:599], steps[300].expand(299))
    schedule.set_progress(0.6)
    assert schedule.eps == 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: certified_cross_entropy(m, torch.ones(2, 5).double(), torch.tensor([0, 9]), 0.1), "target"),
        (lambda m: certified_cross_entropy(m, torch.ones(2, 5).double(), torch.tensor([0, 1]), -0.1), "eps"),
        (lambda m: certified_cross_entropy(m, torch.ones(2, 5).double(), torch.tensor([0, 1]), 0.1, kappa=2), "kappa"),
        (lambda m: fused_certified_cross_entropy(m, torch.ones(2, 5).double(), torch.tensor([0.0]), 0.1), "target"),
        (
            lambda _: certified_cross_entropy(nn.ReLU(), torch.ones(2, 5, 1), torch.tensor([0, 1]), 0.1),
            "model must give",
        ),
        (lambda _: SmoothedEpsilonSchedule(-1.0), "eps_max"),
        (lambda _: SmoothedEpsilonSchedule(0.1, start=0.5, end=0.4), "end"),
        (lambda _: SmoothedEpsilonSchedule(0.1, middle=0), "middle"),
        (lambda _: SmoothedEpsilonSchedule(0.1, beta=0), "beta"),
        (lambda _: SmoothedEpsilonSchedule(0.1)(1.5), "fraction"),
    ],
)
def test_bad_arguments_are_named(model, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)
