from functools import partial

import pytest
import torch
from scipy.stats import linregress
from torch import nn
from torch.testing import assert_close

from lossworks.diagnose import adversarial_error_curve, fit_power_law, linear_adversarial_radius
from lossworks.perturb import FGSM, PGD


@pytest.fixture
def linear(generator):
    model = nn.Linear(8, 4).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model, torch.randn(12, 8, generator=generator, dtype=torch.float64)


def _bisected(model, row, norm):
    """The least size at which some class draws level, moving straight against each gap."""
    with torch.no_grad():
        top = int(model(row).argmax())
        found = []
        for other in set(range(4)) - {top}:
            slope = model.weight[top] - model.weight[other]
            direction = slope.sign() if norm == "linf" else slope / slope.norm()
            low, high = 0.0, 100.0
            for _ in range(100):
                middle = (low + high) / 2
                logits = model(row - middle * direction)
                low, high = (middle, high) if logits[top] > logits[other] else (low, middle)
            found.append(high)
    return min(found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_exact_for_a_linear_model(linear, norm):
    model, x = linear
    wanted = torch.tensor([_bisected(model, row, norm) for row in x], dtype=torch.float64)
    assert_close(linear_adversarial_radius(model, x, norm=norm), wanted, rtol=1e-9, atol=1e-9)


def test_does_not_change_when_the_logits_are_scaled(linear):
    model, x = linear
    before = linear_adversarial_radius(model, x)
    with torch.no_grad():
        model.weight.mul_(7)
        model.bias.mul_(7)
    assert_close(linear_adversarial_radius(model, x), before)


def test_is_the_limit_of_pgd_at_small_radii(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    radius = linear_adversarial_radius(model, x)
    near, far = radius < 0.01, (radius > 0.02) & (radius < 0.1)
    assert near.sum() > 2
    target = model(x).argmax(dim=1)

    def flipped(rows):
        attack = partial(PGD, steps=10, random_start=False)
        return adversarial_error_curve(model, x[rows], target[rows], [0.015], attack).item()

    assert flipped(near) == 1
    assert flipped(far) == 0


def test_a_row_that_is_wrong_has_radius_none_and_a_flat_model_has_no_end(linear):
    model, x = linear
    lowest = model(x).argmin(dim=1)
    assert (linear_adversarial_radius(model, x, lowest) == 0).all()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.arange(4.0))
    assert (linear_adversarial_radius(model, x) == torch.inf).all()


def test_predicted_errors_of_a_random_linear_map_are_in_proportion_to_the_size(generator):
    model = nn.Linear(64, 10, bias=False).double()
    model.weight.data = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    radius = linear_adversarial_radius(model, torch.randn(20_000, 64, generator=generator, dtype=torch.float64))
    eps = torch.logspace(-3, -1.7, 8, dtype=torch.float64)
    law = fit_power_law(eps, (radius < eps[:, None]).double().mean(dim=1))
    assert law.exponent == pytest.approx(1, abs=0.05)
    assert law.r2 > 0.99


def test_the_curve_of_a_linear_model_of_two_classes_is_that_of_its_radii(generator):
    model = nn.Linear(5, 2).double()
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    target = model(x).argmax(dim=1)
    radius, eps = linear_adversarial_radius(model, x, target), [0.0, 0.05, 0.2, 1.0]
    wanted = torch.stack([(radius < size).double().mean() for size in eps])
    assert_close(adversarial_error_curve(model, x, target, eps), wanted)
    assert model.training


def test_a_law_is_found_again():
    eps = torch.logspace(-3, 0, 9, dtype=torch.float64)
    law = fit_power_law(eps, 0.3 * eps**1.4)
    assert law == pytest.approx((1.4, 0.3, 1.0))
    assert fit_power_law(eps, torch.full_like(eps, 0.2)) == pytest.approx((0.0, 0.2, 1.0))


def test_a_law_equals_scipys_regression_in_the_window(generator):
    eps = torch.logspace(-3, 0, 20, dtype=torch.float64)
    error = eps * torch.rand(20, generator=generator, dtype=torch.float64)
    error[3] = 0
    kept = (eps >= 0.002) & (eps <= 0.5) & (error > 0)
    wanted = linregress(eps[kept].log().numpy(), error[kept].log().numpy())
    law = fit_power_law(eps, error, window=(0.002, 0.5))
    assert law.exponent == pytest.approx(wanted.slope)
    assert law.r2 == pytest.approx(wanted.rvalue**2)


def test_bad_arguments_are_named(linear):
    model, x = linear
    target = torch.zeros(12, dtype=torch.int64)
    with pytest.raises(ValueError, match="norm must be one of"):
        linear_adversarial_radius(model, x, norm="l1")
    with pytest.raises(ValueError, match=r"model must give logits \(n, C\)"):
        linear_adversarial_radius(nn.Linear(8, 1).double(), x)
    with pytest.raises(ValueError, match="x must be what model takes"):
        linear_adversarial_radius(model, x[:, :3])
    with pytest.raises(ValueError, match="eps must hold at least one"):
        adversarial_error_curve(model, x, target, [])
    with pytest.raises(TypeError, match="attack must give a lossworks perturbation"):
        adversarial_error_curve(model, x, target, [0.1], lambda eps: eps)
    with pytest.raises(ValueError, match="two or more different sizes"):
        fit_power_law(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="window must begin below"):
        fit_power_law(torch.ones(3), torch.ones(3), window=(2.0, 1.0))


def test_the_default_attack_is_fgsm(linear):
    model, x = linear
    target = model(x).argmax(dim=1)
    found = adversarial_error_curve(model, x, target, [0.3])
    assert_close(found, adversarial_error_curve(model, x, target, [0.3], FGSM))
