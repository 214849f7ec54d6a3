import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.certify import certified_cross_entropy, ibp_init_
from lossworks.objectives import CertifiedCrossEntropyObjective
from lossworks.perturb import PGD


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)).double()


@pytest.fixture
def rows(generator):
    return torch.randn(30, 5, generator=generator, dtype=torch.float64), torch.arange(30) % 4


@pytest.mark.parametrize("kappa", [0.0, 0.4])
def test_it_is_the_mean_of_the_rows_proved_losses(model, rows, kappa):
    x, y = rows
    objective = CertifiedCrossEntropyObjective(0.2, kappa_end=kappa)
    weight = torch.linspace(0.5, 2, 30, dtype=torch.float64)
    each = certified_cross_entropy(model, x, y, 0.2, kappa=kappa)
    assert_close(objective(model, x, y), each.mean())
    assert_close(objective(model, x, y, sample_weight=weight), (weight * each).sum() / weight.sum())
    assert_close(CertifiedCrossEntropyObjective(0.2, kappa_end=kappa, reduction="none")(model, x, y), each)


def test_of_one_layer_it_is_the_loss_at_the_worst_corner(rows):
    x, y = rows
    model = nn.Linear(5, 2).double()
    slope = model.weight[0] - model.weight[1]
    away = torch.where(y % 2 == 0, -1.0, 1.0)[:, None] * slope.sign()
    assert_close(CertifiedCrossEntropyObjective(0.3)(model, x, y % 2), cross_entropy(model(x + 0.3 * away), y % 2))


def test_no_attack_reaches_it(model, rows, generator):
    x, y = rows

    def risk(z):
        return cross_entropy(model(z), y, reduction="none")

    worst = risk(PGD(0.2, steps=20, restarts=3, generator=generator)(risk, x))
    assert bool(
        (CertifiedCrossEntropyObjective(0.2, kappa_end=0.5, reduction="none")(model, x, y) >= worst - 1e-9).all()
    )


def test_the_radius_grows_and_the_relaxation_gives_way_to_intervals(model, rows):
    x, y = rows
    objective = CertifiedCrossEntropyObjective(0.2, kappa_start=1.0, kappa_end=0.0, warmup=0.5)
    objective.set_progress(0.0)
    assert_close(objective(model, x, y), cross_entropy(model(x), y))
    objective.set_progress(0.25)
    radius = objective.schedule(0.25)
    assert 0 < radius < 0.2
    between = certified_cross_entropy(model, x, y, radius, kappa=1 - radius / 0.2).mean()
    assert_close(objective(model, x, y), between)
    again = CertifiedCrossEntropyObjective(0.2, kappa_start=1.0, kappa_end=0.0, warmup=0.5)
    again.load_state_dict(objective.state_dict())
    assert_close(again(model, x, y), between)
    objective.set_progress(0.5)
    assert_close(objective(model, x, y), certified_cross_entropy(model, x, y, 0.2).mean())


def test_rows_without_a_target_count_nowhere(model, rows):
    x, y = rows
    ignored = torch.where(torch.arange(30) < 10, -100, y)
    assert_close(
        CertifiedCrossEntropyObjective(0.2)(model, x, ignored),
        CertifiedCrossEntropyObjective(0.2)(model, x[10:], y[10:]),
    )


def test_normalisation_by_the_clean_batch(rows):
    x, y = rows
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double().train()
    with pytest.raises(ValueError, match="goes by the batch's statistics"):
        CertifiedCrossEntropyObjective(0.1)(model, x, y)
    objective = CertifiedCrossEntropyObjective(0.1, 0.0, statistics="clean")
    assert_close(objective(model, x, y), certified_cross_entropy(model, x, y, 0.1, statistics="clean").mean())


def test_training_on_it_raises_what_is_proved(rows):
    x, y = rows
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    ibp_init_(model)
    objective, step = CertifiedCrossEntropyObjective(0.05), torch.optim.Adam(model.parameters(), lr=0.02)
    before = float(objective(model, x, y).detach())
    for number in range(40):
        objective.set_progress(number / 40)
        step.zero_grad()
        objective(model, x, y).backward()
        step.step()
    objective.set_progress(1.0)
    assert float(objective(model, x, y).detach()) < before - 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -0.1}, "eps must be"),
        ({"eps": 0.1, "kappa_start": 1.5}, "kappa_start"),
        ({"eps": 0.1, "kappa_end": -1}, "kappa_end"),
        ({"eps": 0.1, "warmup": 0.0}, "warmup"),
        ({"eps": 0.1, "statistics": "clean"}, "intervals alone"),
        ({"eps": 0.1, "statistics": "batch"}, "statistics"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CertifiedCrossEntropyObjective(**arguments)


def test_what_cannot_be_certified_is_named(rows):
    x, y = rows
    with pytest.raises(TypeError, match="Tanh"):
        CertifiedCrossEntropyObjective(0.1)(nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double(), x, y)


def test_a_target_that_is_no_tensor_is_named(model, rows):
    with pytest.raises(TypeError, match="target"):
        CertifiedCrossEntropyObjective(0.1)(model, rows[0], rows[1].numpy())
