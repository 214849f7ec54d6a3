import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import CrossEntropyLoss
from lossworks.weights import KLDRO


@pytest.fixture
def losses(generator):
    return 3 * torch.rand(7, generator=generator, dtype=torch.float64)


def robust_risk(losses, temperature):
    """The closed form of the worst case's value, in numpy."""
    scaled = losses.numpy() / temperature
    return temperature * (np.log(np.mean(np.exp(scaled - scaled.max()))) + scaled.max())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_is_the_worst_distribution_that_a_solver_finds(losses, temperature):
    n = len(losses)

    def cost(q):
        return -(q @ losses.numpy()) + temperature * np.sum(q * np.log(n * q))

    def slope(q):
        return -losses.numpy() + temperature * (np.log(n * q) + 1)

    found = minimize(
        cost,
        np.full(n, 1 / n),
        jac=slope,
        bounds=[(1e-12, 1)] * n,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones(n)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert_close(KLDRO(temperature=temperature)(losses) / n, torch.from_numpy(found.x), atol=1e-5, rtol=1e-4)
    assert robust_risk(losses, temperature) == pytest.approx(-found.fun, abs=1e-8)


def test_the_objectives_gradient_is_that_of_the_worst_cases_value(losses):
    leaf = losses.clone().requires_grad_()
    weighted = (KLDRO(temperature=0.7)(losses) * leaf).mean()
    (gradient,) = torch.autograd.grad(weighted, leaf)
    step = 1e-6
    moved = [
        (robust_risk(losses + step * unit, 0.7) - robust_risk(losses - step * unit, 0.7)) / (2 * step)
        for unit in torch.eye(7, dtype=torch.float64)
    ]
    assert_close(gradient, torch.tensor(moved, dtype=torch.float64), atol=1e-8, rtol=1e-6)


def test_runs_from_the_worst_row_to_all_rows_alike(losses):
    assert_close(KLDRO(temperature=1e6)(losses), torch.ones(7, dtype=torch.float64), atol=1e-5, rtol=0)
    hardest = nn.functional.one_hot(losses.argmax(), 7).double()
    assert_close(KLDRO(temperature=1e-4)(losses), 7 * hardest)


def test_the_weighted_mean_never_falls_as_the_temperature_does(losses):
    means = [(KLDRO(temperature=t)(losses) * losses).mean() for t in (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1)]
    assert losses.mean() <= means[0]
    assert all(low <= high for low, high in zip(means, means[1:], strict=False))
    assert means[-1] <= losses.max()


def test_a_constant_added_to_all_losses_changes_nothing(losses):
    assert_close(KLDRO(temperature=0.5)(losses + 1e4), KLDRO(temperature=0.5)(losses), atol=1e-9, rtol=1e-9)


def test_losses_of_ten_thousand_do_not_overflow():
    weights = KLDRO(temperature=1e-3)(torch.tensor([1e4, -1e4, 1e4]))
    assert_close(weights, torch.tensor([1.5, 0.0, 1.5]))


def test_no_rows_have_no_weights():
    assert KLDRO()(torch.zeros(0)).shape == (0,)


def test_ignored_rows_are_not_among_the_rows(generator):
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, -100, 2, 1, -100, 0])
    kept = target != -100
    objective = Objective(CrossEntropyLoss(), KLDRO(temperature=0.5))
    assert_close(objective.risk(logits, target), objective.risk(logits[kept], target[kept]))


def test_the_temperature_may_be_stacked(losses):
    from torch.func import functional_call, vmap

    temperatures = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    weighting = KLDRO(temperature=temperatures[0])
    together = vmap(lambda t: functional_call(weighting, {"temperature": t}, (losses,)))(temperatures)
    assert_close(together, torch.stack([KLDRO(temperature=float(t))(losses) for t in temperatures]))


def test_bad_rows_and_temperatures_are_named():
    with pytest.raises(ValueError, match="losses must be finite, got nan in row 2"):
        KLDRO()(torch.tensor([0.0, 1.0, torch.nan]))
    with pytest.raises(ValueError, match="losses must be finite, got inf in row 0"):
        KLDRO()(torch.tensor([torch.inf, 1.0]))
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be finite and > 0"):
            KLDRO(temperature=bad)
    with pytest.raises(TypeError, match="losses must be floating-point"):
        KLDRO()(torch.ones(2, dtype=torch.int64))
