"""The inner maxima over weights, against a generic convex solver and in their limits."""

import math

import cvxpy
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.testing import assert_close

import lossworks as lw
from lossworks.weights import ChiSquareDRO, CVaR, GroupDRO

ROWS = 30


@pytest.fixture
def losses(generator):
    return torch.randn(ROWS, generator=generator, dtype=torch.float64).exp()


def solved(losses, *constraints_of, price=None):
    """The maximum of mean(w l) less a price, over weights of mean 1, by an interior-point solver."""
    w = cvxpy.Variable(len(losses), nonneg=True)
    constraints = [cvxpy.sum(w) == len(losses), *(make(w) for make in constraints_of)]
    value = losses.numpy() @ w / len(losses) - (0 if price is None else price(w))
    problem = cvxpy.Problem(cvxpy.Maximize(value), constraints)
    exact = 1e-10 if price is None else 1e-8
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=exact, tol_gap_rel=exact, tol_feas=exact)
    return problem.value, torch.from_numpy(w.value)


def chi_square(radius):
    return lambda w: cvxpy.norm(w - 1) <= math.sqrt(2 * radius * ROWS)


@pytest.mark.parametrize("radius", [1e-4, 0.02, 0.3, 1.0, 5.0, 10.0])
def test_chi_square_equals_a_convex_solver(losses, radius):
    value, weights = solved(losses, chi_square(radius))
    found = ChiSquareDRO(radius).solve(losses)
    assert_close(found.value.item(), value, atol=1e-8, rtol=1e-8)
    assert_close(found.weights, weights, atol=1e-4, rtol=0)


@pytest.mark.parametrize("radius", [1e-4, 0.02, 0.3, 1.0, 5.0, 10.0])
def test_chi_square_weights_reach_the_radius_and_their_dual(losses, radius):
    value, weights, dual = ChiSquareDRO(radius).solve(losses)
    assert_close(0.5 * (weights - 1).square().mean().item(), radius, rtol=1e-10, atol=1e-12)
    excess = (losses - dual).relu()
    assert_close(weights, excess / excess.mean(), rtol=1e-8, atol=1e-10)
    assert_close(value, dual + math.sqrt(1 + 2 * radius) * excess.square().mean().sqrt(), rtol=1e-10, atol=0)


def test_chi_square_runs_from_the_mean_to_the_worst_row(losses):
    assert_close(ChiSquareDRO(0.0)(losses), torch.ones_like(losses))
    for radius in ((ROWS - 1) / 2, 100.0):
        assert_close(ChiSquareDRO(radius).solve(losses).value, losses.max())
    variance = losses.var(correction=0)
    assert_close(ChiSquareDRO(1e-6).solve(losses).value, losses.mean() + (2e-6 * variance).sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", [ChiSquareDRO, CVaR])
def test_a_hyperparameter_may_learn_or_be_stacked(weighting, losses):
    numbers = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    one_by_one = torch.stack([weighting(float(number))(losses) for number in numbers.detach()])
    assert_close(torch.stack([weighting(number)(losses) for number in numbers]), one_by_one)
    stacked = torch.func.vmap(lambda number: weighting(number)(losses))(numbers.detach())
    assert_close(stacked, one_by_one)


def many_losses(kind, generator):
    draws = torch.rand(20_000, generator=generator, dtype=torch.float64)
    return {
        "exponential": -draws.log(),
        "even": draws,
        "every sixteenth is large": draws + 5 * (torch.arange(len(draws)) % 16 == 0),
        "ties at the top": draws.clamp(max=0.999),
        "each far above the next": 2.0 ** -torch.arange(200, dtype=torch.float64),
        "each far below the last": -(2.0 ** torch.arange(200, dtype=torch.float64)),
    }[kind]


KINDS = (
    *("exponential", "even", "every sixteenth is large", "ties at the top"),
    *("each far above the next", "each far below the last"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [1e-3, 0.5, 7.0, 60.0])
def test_chi_square_equals_its_dual_over_one_threshold(kind, radius, generator):
    losses = many_losses(kind, generator)
    value, weights, threshold = ChiSquareDRO(radius).solve(losses)

    def dual(eta):
        return eta + math.sqrt((1 + 2 * radius) * float((losses - eta).relu().square().mean()))

    scale = float(losses.max() - losses.min())
    assert_close(value.item(), dual(float(threshold)), rtol=0, atol=1e-11 * scale)
    for nearby in (1e-4, 1e-2, 1.0):
        assert value <= min(dual(float(threshold) + nearby * step) for step in (-scale, scale)) + 1e-12 * scale
    assert_close(weights.mean().item(), 1.0)
    assert 0.5 * float((weights - 1).square().mean()) <= radius * (1 + 1e-8)
    with lw.checks(False):  # unseen values are sorted
        assert_close(ChiSquareDRO(radius).solve(losses).weights, weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1 / 3, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 2.0])
def test_cvar_equals_a_convex_solver(losses, alpha, smoothing):
    def price(w):
        return -smoothing * cvxpy.sum(cvxpy.entr(w)) / ROWS

    value, _ = solved(losses, lambda w: w <= 1 / alpha, price=price if smoothing else None)
    found = CVaR(alpha, smoothing).solve(losses)
    accuracy = 1e-7 if smoothing else 1e-8
    assert_close(found.value.item(), value, atol=accuracy, rtol=accuracy)
    assert float(found.weights.max()) <= 1 / alpha + 1e-9


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("smoothing", [0.1, 2.0])
def test_smoothed_cvar_equals_its_dual_over_one_threshold(losses, alpha, smoothing):
    def dual(threshold):
        excess = losses.numpy() - threshold
        w = np.minimum(1 / alpha, np.exp(excess / smoothing - 1))
        return threshold + np.mean(w * excess - smoothing * w * np.log(w))

    best = minimize_scalar(dual, bracket=(float(losses.min()), float(losses.max())), tol=1e-14)
    assert_close(CVaR(alpha, smoothing).solve(losses).value.item(), best.fun, atol=1e-9, rtol=1e-9)


def test_cvar_is_the_mean_of_the_largest(losses):
    largest = losses.sort(descending=True).values[:6].mean()
    assert_close(CVaR(0.2).solve(losses).value, largest)


def test_cvar_has_the_dual_of_rockafellar_and_uryasev(losses):
    value, _, dual = CVaR(0.37).solve(losses)
    grid = torch.linspace(float(losses.min()), float(losses.max()), 20_001, dtype=torch.float64)
    objective = grid + (losses[:, None] - grid).relu().mean(0) / 0.37
    assert_close(value, objective.min(), atol=1e-5, rtol=0)
    assert_close(dual + (losses - dual).relu().mean() / 0.37, value)


def test_cvar_limits_are_the_mean_and_the_worst_row(losses):
    assert_close(CVaR(1.0)(losses), torch.ones_like(losses))
    assert_close(CVaR(1e-6)(losses), ROWS * (losses == losses.max()).double())
    assert_close(CVaR(0.3, smoothing=1e6)(losses), torch.ones_like(losses), atol=1e-5, rtol=0)
    assert_close(CVaR(0.3, smoothing=1e-7).solve(losses).value, CVaR(0.3).solve(losses).value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weighting", [CVaR(0.25), CVaR(0.25, 0.3), ChiSquareDRO(0.4), ChiSquareDRO(50.0)])
def test_rows_of_one_loss_share_their_weight(weighting):
    losses = torch.tensor([2.0, 1.0, 2.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    weights = weighting(losses)
    assert_close(weights[[0, 2, 3]], weights[:1].expand(3))
    assert_close(weights.mean().item(), 1.0)
    assert_close(weighting(torch.full((5,), 3.0)), torch.ones(5))
    assert_close(weighting(torch.tensor([7.0])), torch.ones(1))


@pytest.mark.parametrize("weighting", [CVaR(0.25), CVaR(0.25, 0.3), ChiSquareDRO(0.4)])
def test_a_shift_of_all_losses_changes_nothing(weighting, losses):
    assert_close(weighting(losses + 1e3), weighting(losses), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("weighting", [CVaR(0.25, 0.3), ChiSquareDRO(0.4)])
def test_the_value_has_the_weights_as_its_gradient(weighting, losses):
    step = 1e-6
    for row in (0, int(losses.argmax())):
        up, down = (losses + s * torch.eye(ROWS, dtype=losses.dtype)[row] for s in (step, -step))
        slope = (weighting.solve(up).value - weighting.solve(down).value) / (2 * step)
        assert_close(slope * ROWS, weighting(losses)[row], atol=1e-6, rtol=1e-6)


def test_group_dro_follows_the_mirror_ascent_of_its_formula(losses):
    group = torch.arange(ROWS) % 3
    weighting = GroupDRO(3, step_size=0.5)
    q = np.full(3, 1 / 3)
    for step in range(3):
        now = losses * (step + 1)
        means = np.array([now[group == g].mean() for g in range(3)])
        q = q * np.exp(0.5 * means)
        q /= q.sum()
        assert_close(weighting(now, group=group), torch.from_numpy(3 * q)[group])


def test_group_dro_at_its_limits(losses):
    group = torch.arange(ROWS) % 3
    worst = max(range(3), key=lambda g: float(losses[group == g].mean()))
    assert_close(GroupDRO(3, math.inf)(losses, group=group), 3.0 * (group == worst).double())
    assert_close(GroupDRO(1)(losses, group=torch.zeros_like(group)), torch.ones_like(losses))


def test_group_dro_leaves_a_group_that_is_not_there(losses):
    weighting = GroupDRO(3, step_size=1.0)
    weights = weighting(losses, group=torch.arange(ROWS) % 2)
    assert_close(weighting.log_q[2].exp().item(), 1 / 3)
    assert_close(weighting.log_q.exp().sum().item(), 1.0)
    assert_close(weights.mean().item(), 1.0)


def test_group_dro_rests_in_eval_mode(losses):
    weighting = GroupDRO(2).eval()
    before = weighting.log_q.clone()
    weighting(losses, group=torch.arange(ROWS) % 2)
    assert_close(weighting.log_q, before, rtol=0, atol=0)


def test_group_dro_adds_more_for_small_groups():
    counts = torch.tensor([100.0, 4.0])
    weights = GroupDRO(2, 1.0, adjustment=2.0, group_counts=counts)(torch.ones(4), group=torch.tensor([0, 0, 1, 1]))
    assert_close(weights[2] / weights[0], torch.tensor(math.exp(2.0 / 2 - 2.0 / 10)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CVaR(0.0), r"alpha must be in \(0, 1\]"),
        (lambda: CVaR(0.5, -1.0), "smoothing"),
        (lambda: ChiSquareDRO(-0.1), "radius must be finite and >= 0"),
        (lambda: GroupDRO(0), "num_groups"),
        (lambda: GroupDRO(2, 0.0), "step_size"),
        (lambda: GroupDRO(2, adjustment=1.0), "group_counts"),
        (lambda: CVaR().solve(torch.empty(0)), "n >= 1"),
        (lambda: CVaR()(torch.tensor([0.0, math.nan, 1.0, math.nan])), "losses must be finite, got nan in row 1, 3"),
        (lambda: CVaR()(torch.full((3,), math.inf)), "losses must be finite, got inf in row 0, 1, 2$"),
        (lambda: CVaR()(torch.full((5,), math.inf)), "losses must be finite, got inf in row 0, 1, 2 and 2 more$"),
        (lambda: ChiSquareDRO()(torch.ones(2, 2)), r"shape \(n,\)"),
        (lambda: GroupDRO(2)(torch.ones(2)), "needs group="),
        (lambda: GroupDRO(2)(torch.ones(2), group=torch.tensor([0, 2])), "got 2 in row 1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_row_of_many_in_half_precision_has_a_finite_weight():
    losses = torch.zeros(100_000, dtype=torch.float16)
    losses[7] = 3e4
    for weighting in (lw.weights.KLDRO(temperature=1.0), lw.weights.KLDRO(radius=20.0), CVaR(1e-6), ChiSquareDRO(1e6)):
        assert weighting(losses)[7] == 1e5
        assert weighting.solve(losses).weights[7] == 1e5
