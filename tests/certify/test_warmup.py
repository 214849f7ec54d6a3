import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.certify import IBPWarmupRegularizer, ibp_init_, interval_bounds


def deep(width=200, layers=5):
    torch.manual_seed(0)
    parts = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 3)).double()


def test_the_weights_keep_the_width_of_the_bounds(generator):
    model, x = deep(), torch.randn(8, 200, generator=generator, dtype=torch.float64)

    def growth(network):
        low, high = interval_bounds(network[:-1], x, 0.01)
        return float((high - low).detach().mean()) / 0.02

    usual = growth(model)
    last = model[-1].weight.detach().clone()
    ibp_init_(model, generator=generator)
    assert float(model[0].weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 200, rel=0.02)
    assert torch.equal(model[-1].weight, last)
    assert 0.5 < growth(model) < 2 < usual
    ibp_init_(model, skip_last=False, generator=generator)
    assert not torch.equal(model[-1].weight, last)


def by_hand(boxes, first, tol, lam, share):
    total = 0.0
    for low, high in boxes:
        short = lambda ratio: max(tol - ratio, 0.0) / tol  # noqa: E731
        centre = ((low + high) / 2).flatten()
        on, off = (low > 0).flatten(), (high < 0).flatten()
        total += short(first / float(((high - low) / 2).mean()))
        if on.any() and off.any():
            apart = (centre - centre.mean()) ** 2
            for a, b in ((centre[on].sum(), -centre[off].sum()), (apart[on].sum(), apart[off].sum())):
                total += short(min(float(a / b), float(b / a)))
    return lam * (1 - share) * total / len(boxes)


def test_the_price_is_its_formula(generator):
    model, x = deep(20, 3), torch.randn(6, 20, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        boxes = [interval_bounds(model[:layers], x, 0.05) for layers in (1, 3, 5)]
    expected = by_hand(boxes, 0.05, 0.6, 0.7, 0.25)
    found = IBPWarmupRegularizer(tol=0.6, lam=0.7)(model, x, 0.05, share=0.25)
    assert float(found.detach()) == pytest.approx(expected)
    assert expected > 0
    found.backward()
    assert float(model[0].weight.grad.abs().sum()) > 0


def test_costs_nothing_at_the_full_radius_and_without_a_relu(generator):
    x = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    assert float(IBPWarmupRegularizer()(deep(20, 3), x, 0.05, share=1.0).detach()) == 0
    assert float(IBPWarmupRegularizer()(nn.Linear(20, 2).double(), x, 0.05)) == 0


def test_bounds_that_are_balanced_and_tight_cost_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double()
    model[0].weight.data = torch.eye(2, dtype=torch.float64)
    model[0].bias.data.zero_()
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert_close(IBPWarmupRegularizer()(model, x, 0.1), torch.zeros((), dtype=torch.float64))


def test_clean_statistics_leave_the_running_ones(generator):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    assert IBPWarmupRegularizer()(model, x, 0.1, statistics="clean") >= 0
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IBPWarmupRegularizer(tol=0), "tol"),
        (lambda: IBPWarmupRegularizer(lam=-1), "lam"),
        (lambda: IBPWarmupRegularizer()(nn.Linear(2, 2), torch.ones(2, 2), 0.1, share=2), "share"),
        (lambda: IBPWarmupRegularizer()(nn.Linear(2, 2), torch.ones(2, 2), 0.1, statistics="own"), "statistics"),
        (lambda: ibp_init_(nn.ReLU()), "Linear or convolution"),
        (lambda: ibp_init_(3), "model"),
        (lambda: ibp_init_(nn.Linear(2, 2), skip_last=1), "skip_last"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
