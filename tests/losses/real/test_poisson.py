import numpy as np
import pytest
import torch
from scipy.stats import poisson
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.losses import PoissonLoss


@pytest.fixture
def rows(generator):
    expected = torch.rand(50, dtype=torch.float64, generator=generator) * 6 + 0.05
    return expected.log(), torch.poisson(expected, generator=generator)


def test_is_half_of_sklearns_deviance(rows):
    output, target = rows
    assert (target == 0).any()
    wanted = mean_poisson_deviance(target.numpy(), output.exp().numpy()) / 2
    assert PoissonLoss()(output, target).item() == pytest.approx(wanted)


def test_is_what_the_likelihood_falls_short_of_a_perfect_fit(rows):
    output, target = rows
    counts, expected = target.numpy(), output.exp().numpy()
    perfect = np.where(counts > 0, poisson.logpmf(counts, np.maximum(counts, 1e-300)), 0.0)
    wanted = perfect - poisson.logpmf(counts, expected)
    assert_close(PoissonLoss(reduction="none")(output, target), torch.tensor(wanted))


def test_the_gradient_is_that_of_torchs_poisson_loss(rows):
    output, target = (tensor.clone().requires_grad_() for tensor in rows)
    (own,) = torch.autograd.grad(PoissonLoss()(output, target.detach()), output)
    (other,) = torch.autograd.grad(F.poisson_nll_loss(output, target.detach()), output)
    assert_close(own, other)


def test_a_minimum_is_sklearns_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = rng.poisson(np.exp(0.4 + x @ [0.5, -0.3]))
    wanted = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000).fit(x, y)
    layer = torch.nn.Linear(2, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        value = PoissonLoss()(layer(torch.tensor(x))[:, 0], torch.tensor(y))
        value.backward()
        return value

    optimizer.step(closure)
    assert_close(layer.weight[0].detach(), torch.tensor(wanted.coef_), atol=1e-5, rtol=0)
    assert layer.bias.item() == pytest.approx(wanted.intercept_, abs=1e-5)


def test_goes_on_along_its_tangent_where_counts_are_beyond_all_sense():
    output = torch.tensor([29.0, 30.0, 31.0, 1e4], requires_grad=True)
    losses = PoissonLoss(reduction="none")(output, torch.zeros(4))
    (slope,) = torch.autograd.grad(losses.sum(), output)
    top = torch.tensor(30.0).exp()
    assert_close(losses[1:] / top, torch.tensor([1.0, 2.0, 1 + 1e4 - 30]))
    assert_close(slope / top, torch.tensor([(torch.tensor(-1.0)).exp().item(), 1.0, 1.0, 1.0]))


def test_the_unit_of_the_counts_changes_only_the_scale(rows):
    output, target = rows
    unit = 3.0
    assert_close(unit * PoissonLoss()(output - np.log(unit), target / unit), PoissonLoss()(output, target))


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_what_is_no_count_is_refused(wrong):
    with pytest.raises(ValueError, match="target"):
        PoissonLoss()(torch.zeros(2), torch.tensor([1.0, wrong]))
