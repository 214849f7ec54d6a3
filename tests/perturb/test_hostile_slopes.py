"""Attacks under inference mode, and attacks on risks whose slopes are not finite or do not exist."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import CrossEntropyLoss
from lossworks.objectives import SmoothAdversarialCompSumObjective
from lossworks.perturb import FGSM, PGD, TRADES, PricedAscent
from lossworks.perturb.ball import Ball

ATTACKS = [FGSM(), FGSM(0.1, "l2"), PGD(columns=[0, 2]), PricedAscent(5.0), TRADES()]


def scored(attack, model, x, target):
    torch.manual_seed(0)
    return Objective(CrossEntropyLoss(), perturb=attack)(model, x, target)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_an_attack_in_inference_mode_is_the_one_outside_it(attack, generator):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval()
    x, target = torch.randn(6, 3, generator=generator), torch.arange(6) % 2
    with torch.no_grad():
        wanted = scored(attack, model, x, target)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.inference_mode():
        assert_close(scored(attack, model, x, target).clone(), wanted)
        assert_close(scored(attack, model, x.clone(), target.clone()).clone(), wanted)
        made = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval()
        made.load_state_dict(model.state_dict())
        assert_close(scored(attack, made, x, target).clone(), wanted)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_smooth_adversarial_price_is_paid_in_inference_mode():
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    with torch.inference_mode():
        priced = SmoothAdversarialCompSumObjective()(model, x, torch.tensor([0, 1, 0, 1]))
        clean = SmoothAdversarialCompSumObjective(nu=0.0)(model, x, torch.tensor([0, 1, 0, 1]))
    assert priced > clean


@pytest.mark.parametrize("attack", [FGSM(), PGD()], ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("around", [torch.enable_grad, torch.inference_mode])
def test_a_risk_that_does_not_read_x_is_named(attack, around):
    weight = torch.ones((), requires_grad=True)
    for risk in (lambda z: torch.zeros(len(z)), lambda z: weight.expand(len(z)), lambda z: z.detach().sum(1)):
        with around(), pytest.raises(ValueError, match="risk must give numbers whose gradient reaches x"):
            attack(risk, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("slopes", "wanted"),
    [
        ([3.0, 4.0], [0.6, 0.8]),
        ([math.inf, 4.0], [1.0, 0.0]),
        ([math.inf, -math.inf], [math.sqrt(0.5), -math.sqrt(0.5)]),
        ([math.nan, -4.0], [0.0, -1.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([math.nan, math.nan], [0.0, 0.0]),
        ([3e38, 3e38], [math.sqrt(0.5), math.sqrt(0.5)]),
    ],
)
def test_a_step_in_l2_has_length_one_along_the_slopes_that_are_largest(slopes, wanted):
    slope = torch.tensor([slopes, [0.0, 2.0]])
    direction = Ball(torch.zeros(2, 2), 1.0, "l2").steepest(slope)
    assert_close(direction, torch.tensor([wanted, [0.0, 1.0]]))


def test_a_long_slope_in_half_precision_has_a_direction():
    slope = torch.full((1, 4), 6e4, dtype=torch.float16)
    x = torch.zeros(1, 4, dtype=torch.float16)
    found = FGSM(1.0, "l2")(lambda z: (slope * z).sum(1, dtype=torch.float32), x)
    assert_close(found.float(), torch.full((1, 4), 0.5), atol=5e-3, rtol=0)
