import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import AdaptiveLDRLoss, CrossEntropyLoss
from lossworks.objectives import AdaWACObjective, adawac_update
from lossworks.perturb import GaussianNoise, PricedAscent
from lossworks.roles import Perturbation
from lossworks.testing import check_exactness


class Shifted(Perturbation):
    """A view that is moved by 0.1 at the first call, by 0.2 at the second, and so on."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, risk, x):
        self.calls += 1
        return x + 0.1 * self.calls


@pytest.fixture
def batch(generator):
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 2, 1, 1, 0]), torch.tensor([3, 0, 7, 1, 5])


def terms(model, x, target, strength):
    (first, one), (second, other) = model(x + 0.1), model(x + 0.2)
    sup = (cross_entropy(first, target, reduction="none") + cross_entropy(second, target, reduction="none")) / 2
    return sup, strength * (one - other).square().mean(dim=1)


def test_is_its_equation_over_two_steps(batch, wide):
    x, target, index = batch
    objective = AdaWACObjective(8, lr_w=0.7, strength=3.0, augment=Shifted())
    sup, reg = terms(wide, x, target, 3.0)
    for step in (1, 2):
        objective.perturb.calls = 0
        beta = torch.sigmoid(step * 0.7 * (sup - reg)).detach()
        value = objective(wide, x, target, index=index)
        wanted = (beta * sup + (1 - beta) * reg).mean()
        assert_close(value, wanted)
        got = torch.autograd.grad(value, list(wide.parameters()))
        assert_close(got, torch.autograd.grad(wanted, list(wide.parameters()), retain_graph=True))
    assert_close(objective.loss.logit[index], 2 * 0.7 * (sup - reg).detach())
    assert objective.loss.logit[[2, 4, 6]].tolist() == [0, 0, 0]


def test_a_model_without_features_is_consistent_in_its_output(batch):
    x, target, index = batch
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    value = AdaWACObjective(8, lr_w=0.0, augment=Shifted())(model, x, target, index=index)
    sup, reg = terms(lambda rows: (model(rows),) * 2, x, target, 1.0)
    assert_close(value, (sup + reg).mean() / 2)


def test_pixels_are_averaged_over_those_that_have_a_label(generator):
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (3, 4, 4), generator=generator)
    target[0, :2], target[2] = -100, -100
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1).double()
    objective = AdaWACObjective(3, augment=Shifted(), loss=CrossEntropyLoss(reduction="none"))
    losses = objective(model, x, target, index=torch.arange(3))
    first, second = model(x + 0.1), model(x + 0.2)
    for row in (0, 1):
        sup = (cross_entropy(first[row : row + 1], target[row : row + 1])) / 2
        sup = sup + cross_entropy(second[row : row + 1], target[row : row + 1]) / 2
        reg = (first[row] - second[row]).square().mean()
        beta = torch.sigmoid(sup - reg).detach()
        assert_close(losses[row], beta * sup + (1 - beta) * reg)
    assert losses[2] == 0
    assert objective.loss.logit[2] == 0
    objective = AdaWACObjective(3, augment=Shifted())
    assert_close(objective(model, x, target, index=torch.arange(3)), losses[:2].mean())


def test_a_constant_gap_moves_the_logit_by_its_multiple_and_it_stays_in_bounds():
    objective, index = AdaWACObjective(4, lr_w=0.5), torch.tensor([1, 2])
    sup, reg = torch.tensor([2.0, 0.3], dtype=torch.float64), torch.tensor([1.0, 0.7], dtype=torch.float64)
    for _ in range(10):
        weights = objective.step(index, sup, reg)
    assert_close(weights.logit()[:, 0], 10 * 0.5 * (sup - reg))
    assert_close(weights.sum(dim=1), torch.ones(2, dtype=torch.float64))
    for _ in range(3):
        objective.step(index, 100 * sup, reg)
    assert objective.loss.logit.tolist() == [0, 30, 30, 0]


def test_swapping_the_losses_swaps_the_weights_and_equal_losses_leave_them(generator):
    sup, reg = torch.rand(2, 6, generator=generator)
    weights = torch.rand(6, 2, generator=generator).softmax(dim=1)
    assert_close(adawac_update(weights.flip(1), reg, sup), adawac_update(weights, sup, reg).flip(1))
    assert_close(adawac_update(weights, sup, sup), weights)
    assert_close(adawac_update(weights, sup, reg, lr=0.0), weights)


def test_the_update_is_multiplication_and_the_saddle_takes_the_larger(generator):
    sup, reg = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 2, generator=generator, dtype=torch.float64).softmax(dim=1)
    grown = torch.stack([weights[:, 0] * math.e ** (0.8 * (sup - reg)), weights[:, 1]], dim=1)
    assert_close(adawac_update(weights, sup, reg, 0.8), grown / grown.sum(dim=1, keepdim=True))
    assert_close(adawac_update(weights, sup, reg, 1e6)[:, 0], (sup > reg).double())


def test_the_objective_and_the_update_take_the_same_steps(generator):
    objective, weights = AdaWACObjective(6, lr_w=0.3), torch.full((6, 2), 0.5)
    for _ in range(5):
        sup, reg = torch.rand(2, 6, generator=generator)
        weights = adawac_update(weights, sup, reg, 0.3)
        assert_close(objective.step(torch.arange(6), sup, reg), weights)


def test_nothing_moves_outside_training_and_nothing_is_remembered_of_unnumbered_rows(batch, wide):
    x, target, index = batch
    objective = AdaWACObjective(8, augment=Shifted()).eval()
    objective(wide, x, target, index=index)
    assert not objective.loss.logit.any()
    objective.train()(wide, x, target, index=torch.full_like(index, -1))
    assert not objective.loss.logit.any()


def test_is_exact_however_it_is_split(two_ranks, three_ranks):
    """With views that aren't drawn, rows that come twice and rows without a label."""
    said = check_exactness(AdaWACObjective(12, lr_w=0.5, augment=PricedAscent(steps=2)), [two_ranks, three_ranks])
    assert all(said[column].startswith("exact") for column in ("2 processes", "3 processes", "micro-batches", "vmap"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be in"),
        ({"lr_w": -1.0}, "lr_w must be finite and >= 0"),
        ({"strength": math.nan}, "strength must be finite"),
        ({"loss": nn.CrossEntropyLoss()}, "loss must be a Loss"),
        ({"loss": AdaptiveLDRLoss(3)}, "loss must be a Loss whose rows stand alone"),
        ({"augment": lambda x: x}, "augment must be a Perturbation"),
    ],
)
def test_says_what_is_wrong_with_its_parts(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AdaWACObjective(**{"num_samples": 3, **arguments})


def test_says_what_is_wrong_with_a_batch(batch, wide):
    x, target, index = batch
    objective = AdaWACObjective(8, augment=GaussianNoise(0.1))
    with pytest.raises(ValueError, match="give it index="):
        objective(wide, x, target)
    with pytest.raises(ValueError, match=r"index must be in \[0, 8\)"):
        objective(wide, x, target, index=index + 1)
    with pytest.raises(TypeError, match="model must give a tensor or a pair"):
        objective(lambda rows: (rows,) * 3, x, target, index=index)
    with pytest.raises(TypeError, match="output must be of two views"):
        objective.risk(torch.zeros(5, 3), target, index=index)
    with pytest.raises(ValueError, match="weights must be pairs"):
        adawac_update(torch.ones(2, 2), torch.ones(2), torch.ones(2))
