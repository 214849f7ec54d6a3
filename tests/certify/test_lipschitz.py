import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lossworks.certify import LipschitzRegressor, empirical_lipschitz_constant, lipschitz_constraint_projection


@pytest.fixture
def rows(generator):
    x = torch.randn(14, 2, dtype=torch.float64, generator=generator)
    return x, torch.randn(14, 2, dtype=torch.float64, generator=generator)


def by_a_solver(x, u, slope):
    """The projection by cvxpy, one cone a pair."""
    x, u = x.numpy(), u.numpy().reshape(len(u), -1)
    v = cp.Variable(u.shape)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    near = [cp.norm(v[i] - v[j]) <= slope * np.linalg.norm(x[i] - x[j]) for i, j in pairs]
    cp.Problem(cp.Minimize(cp.sum_squares(u - v)), near).solve(solver=cp.CLARABEL)
    return torch.from_numpy(v.value)


@pytest.mark.parametrize("slope", [0.2, 1.0])
@pytest.mark.parametrize("outputs", [1, 2])
def test_projection_is_a_conic_solvers(rows, slope, outputs):
    x, u = rows[0], rows[1][:, :outputs]
    found = lipschitz_constraint_projection(x, u, slope)
    assert_close(found, by_a_solver(x, u, slope), atol=1e-4, rtol=0)
    assert empirical_lipschitz_constant(x, found) <= slope


def test_projection_meets_the_conditions_that_only_the_optimum_meets(rows):
    """No feasible direction goes down: the residual's product with any other feasible point's offset is at most 0."""
    x, u = rows
    found = lipschitz_constraint_projection(x, u, 0.5)
    draws = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = torch.randn(u.shape, dtype=u.dtype, generator=draws)
        other = other * 0.5 / empirical_lipschitz_constant(x, other)
        assert ((u - found) * (other - found)).sum() <= 1e-4 * u.square().sum()


def test_a_slope_of_zero_gives_the_mean_and_one_that_the_rows_keep_gives_them_back(rows):
    x, u = rows
    assert_close(lipschitz_constraint_projection(x, u, 0.0), u.mean(dim=0).expand_as(u))
    steepest = float(empirical_lipschitz_constant(x, u))
    assert torch.equal(lipschitz_constraint_projection(x, u, steepest * (1 + 1e-12)), u)
    assert not torch.equal(lipschitz_constraint_projection(x, u, steepest * 0.99), u)


def test_steepest_slope_is_the_largest_over_pairs(rows):
    x, u = rows
    slopes = [float((u[i] - u[j]).norm() / (x[i] - x[j]).norm()) for i in range(14) for j in range(i)]
    assert_close(empirical_lipschitz_constant(x, u).item(), max(slopes))
    twice = torch.cat([x, x[:1]]), torch.cat([u, u[:1] + 1])
    assert empirical_lipschitz_constant(*twice) == torch.inf


def test_rows_of_one_input_get_one_value_and_count_as_often_as_they_come(generator):
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    u = torch.tensor([0.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    # With v at 0 and v + 1 at 1: 3 (v - 1) + (v - 8) = 0.
    wanted = torch.tensor([2.75, 2.75, 2.75, 3.75], dtype=torch.float64)
    assert_close(lipschitz_constraint_projection(x, u, 1.0), wanted, atol=1e-6, rtol=0)


def test_training_loss_falls_and_is_convex_in_the_slope(rows):
    x, u = rows[0], rows[1][:, 0]
    slopes = torch.arange(0.0, 4.1, 0.4)
    losses = torch.stack([(u - LipschitzRegressor(float(a)).fit(x, u).predict(x)).square().mean() for a in slopes])
    assert (losses.diff() <= 1e-7).all()
    assert (losses.diff().diff() >= -1e-6).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_no_two_answers_anywhere_are_further_apart_than_the_slope_allows(rows, outputs, generator):
    x, u = rows[0], rows[1][:, :outputs]
    model = LipschitzRegressor(0.8).fit(x, u)
    a, b = 3 * torch.randn(2, 4000, 2, dtype=torch.float64, generator=generator)
    b[::2] = a[::2] + 0.01 * b[::2]
    slopes = (model.predict(a) - model.predict(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert slopes.max() <= 0.8 * (1 + 1e-9)
    assert slopes.max() > 0.4
    assert_close(model.predict(x), model.values)


def test_between_the_rows_it_is_the_middle_of_all_that_pass_through_them(rows):
    x, u = rows[0], rows[1][:, 0]
    model = LipschitzRegressor(1.0).fit(x, u)
    point = torch.tensor([0.3, -0.2], dtype=torch.float64)
    value = cp.Variable()
    room = [cp.abs(value - float(v)) <= float((point - row).norm()) for v, row in zip(model.values, x, strict=True)]
    ends = [cp.Problem(goal(value), room).solve(solver=cp.CLARABEL) for goal in (cp.Minimize, cp.Maximize)]
    assert model.predict(point[None]).item() == pytest.approx(sum(ends) / 2, abs=1e-6)


def test_survives_saving_and_keeps_its_precision(rows):
    x, u = (tensor.float() for tensor in rows)
    model = LipschitzRegressor(0.7).fit(x, u)
    fresh = LipschitzRegressor(0.7)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert model(x).dtype is torch.float32


def test_bad_arguments_are_named(rows):
    x, u = rows
    with pytest.raises(ValueError, match="lipschitz must be finite and >= 0"):
        LipschitzRegressor(-1.0)
    with pytest.raises(ValueError, match="x can be asked about only after fit"):
        LipschitzRegressor(1.0).predict(x)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\)"):
        LipschitzRegressor(1.0).fit(x, u).predict(x[:, :1])
    with pytest.raises(ValueError, match=r"target must have shape \(14,\)"):
        lipschitz_constraint_projection(x, u[:3], 1.0)
    with pytest.raises(ValueError, match="x must be finite"):
        empirical_lipschitz_constant(x / 0, u)
    with pytest.raises(ValueError, match="x must differ by"):
        lipschitz_constraint_projection(torch.tensor([[0.0], [1e-15], [1.0]]), torch.tensor([0.0, 1.0, 5.0]), 1.0)


def test_asked_before_it_is_fitted_or_with_other_columns_it_says_so():
    model = LipschitzRegressor(1.0)
    assert (model.points.shape, model.values.shape) == ((0, 0), (0,))
    with pytest.raises(ValueError, match="only after fit"):
        model.predict(torch.ones(2, 3))
    model.fit(torch.eye(3), torch.arange(3.0))
    for shape in ((2, 2), (2, 4), (3,)):
        with pytest.raises(ValueError, match=r"x must have shape \(n, 3\) as it was fitted"):
            model.predict(torch.ones(shape))
