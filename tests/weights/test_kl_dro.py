import cvxpy
import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import nn
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import CrossEntropyLoss
from lossworks.weights import KLDRO, CompositionalEMA, KLDRORisk, kl_dro_weights


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
    assert bool((torch.stack(means).diff() >= 0).all())
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


@pytest.mark.parametrize("radius", [1e-6, 0.01, 0.3, 1.0, 1.9])
def test_a_radius_equals_a_convex_solver(losses, radius):
    q = cvxpy.Variable(7, nonneg=True)
    near = cvxpy.sum(cvxpy.kl_div(7 * q, np.ones(7))) / 7 <= radius
    problem = cvxpy.Problem(cvxpy.Maximize(losses.numpy() @ q), [cvxpy.sum(q) == 1, near])
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert KLDRO(radius=radius).solve(losses).value.item() == pytest.approx(problem.value, abs=1e-7)


@pytest.mark.parametrize("radius", [1e-8, 1e-3, 0.3, 1.0, 1.9, 1.9459])
def test_a_radius_is_reached_and_its_dual_is_the_temperature(losses, radius):
    value, weights, temperature = KLDRO(radius=radius).solve(losses)
    assert float((weights * weights.log()).mean()) == pytest.approx(radius, rel=1e-7, abs=1e-12)
    assert_close(weights, KLDRO(temperature=float(temperature))(losses), rtol=1e-7, atol=1e-9)

    def dual(log_t):
        return robust_risk(losses, np.exp(log_t)) + np.exp(log_t) * radius

    found = minimize_scalar(dual, bracket=(np.log(float(temperature)) - 1, np.log(float(temperature)) + 1), tol=1e-14)
    assert value.item() == pytest.approx(found.fun, abs=1e-8)


def test_a_radius_runs_from_all_rows_alike_to_the_worst(losses):
    assert_close(KLDRO(radius=0.0)(losses), torch.ones_like(losses))
    hardest = 7 * nn.functional.one_hot(losses.argmax(), 7).double()
    for radius in (np.log(7), 5.0):
        assert_close(KLDRO(radius=float(radius))(losses), hardest)
    tied = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    assert_close(KLDRO(radius=3.0)(tied), torch.tensor([1.5, 1.5, 0.0], dtype=torch.float64))
    assert_close(KLDRO(radius=0.5)(torch.ones(4)), torch.ones(4))


def test_the_risk_has_the_weights_as_its_gradient(losses):
    leaf = losses.clone().requires_grad_()
    value = KLDRORisk(0.7)(leaf)
    assert_close(value, KLDRO(temperature=0.7).solve(losses).value)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert_close(gradient, kl_dro_weights(losses, 0.7))
    assert torch.autograd.gradcheck(KLDRORisk(0.7), leaf)


def test_a_base_tilts_the_shares(losses, generator):
    base = torch.rand(7, generator=generator, dtype=torch.float64)
    base /= base.sum()
    tilted = base * (losses / 0.4).exp()
    assert_close(kl_dro_weights(losses, 0.4, base), tilted / tilted.sum())


def test_the_running_normaliser_is_the_moving_mean(generator):
    weighting, u = CompositionalEMA(temperature=0.5, momentum=0.2), None
    for _ in range(5):
        losses = torch.rand(6, generator=generator, dtype=torch.float64)
        now = np.exp(losses.numpy() / 0.5).mean()
        u = now if u is None else 0.8 * u + 0.2 * now
        assert_close(weighting(losses), torch.from_numpy(np.exp(losses.numpy() / 0.5) / u))
    before = weighting.log_u.clone()
    weighting.eval()(losses)
    assert_close(weighting.log_u, before, rtol=0, atol=0)


def test_in_evaluation_the_remembered_normaliser_weighs_and_not_the_batch(losses):
    weighting = CompositionalEMA(temperature=0.5, momentum=0.2)
    weighting(losses)
    u = np.exp(losses.numpy() / 0.5).mean()
    found = weighting.eval()(losses + 1)
    assert_close(found, torch.from_numpy(np.exp((losses.numpy() + 1) / 0.5) / u))


def test_full_momentum_is_kl_dro(losses):
    weighting = CompositionalEMA(temperature=0.5, momentum=1.0)
    weighting(losses.flip(0) + 3)
    assert_close(weighting(losses), KLDRO(temperature=0.5)(losses))


def test_the_running_normaliser_does_not_overflow():
    weighting = CompositionalEMA(temperature=1e-3)
    assert_close(weighting(torch.tensor([1e4, -1e4, 1e4])), torch.tensor([1.5, 0.0, 1.5]))


def test_micro_batches_move_the_normaliser_once(generator):
    logits = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (8,), generator=generator)
    whole, split = (Objective(CrossEntropyLoss(), CompositionalEMA(momentum=0.3)) for _ in range(2))
    for _ in range(3):
        value = whole(nn.Identity(), logits, target)
        parts = [(logits[rows], target[rows]) for rows in torch.arange(8).split(3)]
        assert_close(sum(part.item() for part in split.micro_batches(nn.Identity(), parts)), value.item())
        assert_close(split.weights.log_u, whole.weights.log_u)
        logits = 1.3 * logits


def test_bad_shares_and_two_ways_are_named(losses):
    with pytest.raises(ValueError, match="temperature and radius"):
        KLDRO(temperature=1.0, radius=1.0)
    with pytest.raises(ValueError, match="radius must be finite and >= 0"):
        KLDRO(radius=-1.0)
    with pytest.raises(ValueError, match="momentum"):
        CompositionalEMA(momentum=0.0)
    with pytest.raises(ValueError, match="base must be shares"):
        kl_dro_weights(losses, 1.0, torch.ones_like(losses))
    with pytest.raises(ValueError, match="n >= 1"):
        KLDRORisk()(torch.zeros(0))


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


def test_a_learned_radius_has_first_and_second_derivatives(losses):
    radius = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def value(rho):
        return KLDRO(radius=rho).solve(losses).value

    assert torch.autograd.gradcheck(value, radius)
    assert torch.autograd.gradgradcheck(value, radius)
    at = radius.detach()
    _, slope = torch.func.jvp(value, (at,), (torch.ones_like(at),))
    assert_close(slope, KLDRO(radius=0.3).solve(losses).dual)  # the price of the constraint


@pytest.mark.parametrize("rows", [50, 20_000])
@pytest.mark.parametrize("radius", [1e-4, 0.1, 2.0])
def test_the_radius_is_kept_and_the_value_is_that_of_scipys_dual(generator, rows, radius):
    losses = torch.randn(rows, generator=generator, dtype=torch.float64)
    found = KLDRO(radius=radius).solve(losses)
    dual = minimize_scalar(
        lambda log_t: robust_risk(losses, np.exp(log_t)) + radius * np.exp(log_t),
        bounds=(-8, 8),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert float(found.value) == pytest.approx(dual.fun, rel=1e-10, abs=1e-10)
    assert float(torch.special.xlogy(found.weights, found.weights).mean()) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_radius_is_found_at_any_size_of_the_losses(losses, scale):
    assert_close(KLDRO(radius=0.3)(scale * losses), KLDRO(radius=0.3)(losses), rtol=1e-9, atol=1e-12)


def test_a_sample_of_equal_rows_is_no_start(generator):
    """Every sixteenth row has one loss, so that a search that begins with these finds nothing there."""
    losses = torch.rand(20_000, generator=generator, dtype=torch.float64)
    losses[::16] = 0.5
    weights = KLDRO(radius=0.3)(losses)
    assert float(torch.special.xlogy(weights, weights).mean()) == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize("radius", [1e-3, 0.1, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("power", [1, 3, 9])
def test_a_radius_is_reached_with_few_losses_far_out(generator, radius, power):
    losses = torch.randn(3_000, generator=generator, dtype=torch.float64).abs() ** power
    weights = KLDRO(radius=radius)(losses)
    assert float(torch.special.xlogy(weights, weights).mean()) == pytest.approx(radius, rel=1e-9)
    logs = weights[weights > 1e-200].log()
    slope = (logs[1:] - logs[0]) / (losses[weights > 1e-200][1:] - losses[weights > 1e-200][0])
    assert_close(slope, slope.median().expand_as(slope), rtol=1e-6, atol=0)
