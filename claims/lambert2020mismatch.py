"""Objective mismatch: a pendulum's model that predicts worse everywhere controls better where it matters."""

import numpy as np
import torch
from scipy.linalg import solve_discrete_are

from claims.record import Measurement
from lossworks.diagnose import objective_mismatch
from lossworks.weights import trajectory_distance_weights

PAPER = "lambert2020mismatch"
RULE = (
    "An inverted pendulum, a linear model by least squares from uniform data, and the linear-quadratic regulator of "
    "that model, 8 seeds: weighed by distance from the trajectory of the true linearisation's regulator (strength 1) "
    "the control cost is below that without weights on at least 7, while the mean squared error over the uniform data "
    "is higher on average; and the rank correlation of low error with low cost is negative over the strengths."
)

SEEDS, ROWS, STEP, STEPS = 8, 500, 0.05, 100
STRENGTHS = (0.0, 0.1, 0.3, 1.0, 2.0, 3.0)
REACH = np.array([2.0, 4.0, 8.0])


def measure() -> Measurement:
    runs = np.array([[_scores(strength, seed) for strength in STRENGTHS] for seed in range(SEEDS)])
    errors, costs = runs.mean(axis=0).T
    at_one = STRENGTHS.index(1.0)
    better = int((runs[:, at_one, 1] < runs[:, 0, 1]).sum())
    report = objective_mismatch(torch.from_numpy(-errors), torch.from_numpy(-costs))
    return Measurement(
        shown=better >= 7 and bool(errors[at_one] > errors[0]) and report.spearman.value < 0,
        measured=f"control cost {costs[0]:.2f} to {costs[at_one]:.2f} (lower on {better} of {SEEDS}), mean squared "
        f"error {errors[0]:.4f} to {errors[at_one]:.4f}, rank correlation {report.spearman.value:+.2f}",
        numbers={
            "mean squared error by strength": errors.tolist(),
            "control cost by strength": costs.tolist(),
            "control cost, strength 0": runs[:, 0, 1].tolist(),
            "control cost, strength 1": runs[:, at_one, 1].tolist(),
        },
        seeds=SEEDS,
    )


def _next(rows: np.ndarray) -> np.ndarray:
    """The state after a step, from angle, speed and torque."""
    speed = rows[:, 1] + STEP * (10 * np.sin(rows[:, 0]) + rows[:, 2])
    return np.stack([rows[:, 0] + STEP * speed, speed], axis=1)


def _run(model: np.ndarray) -> tuple[np.ndarray, float]:
    """The trajectory and the cost of the regulator of this model ``(3, 2)`` on the true pendulum."""
    a, b = model[:2].T, model[2:].T
    price, torque = np.eye(2), np.array([[0.1]])
    p = solve_discrete_are(a, b, price, torque)
    gain = np.linalg.solve(torque + b.T @ p @ b, b.T @ p @ a)
    state, cost, seen = np.array([0.6, 0.0]), 0.0, []
    for _ in range(STEPS):
        force = float(np.clip(-gain @ state, -REACH[2], REACH[2])[0])
        seen.append([*state, force])
        cost += float(state @ state) + 0.1 * force**2
        state = _next(np.array([seen[-1]]))[0]
    return np.array(seen), cost


def _scores(strength: float, seed: int) -> tuple[float, float]:
    """The error over uniform data and the control cost."""
    draw = np.random.default_rng(seed)
    rows, fresh = draw.uniform(-REACH, REACH, (2, ROWS, 3))
    after = _next(rows) + 0.01 * draw.normal(size=(ROWS, 2))
    exact = np.array([[1 + 10 * STEP**2, STEP, STEP**2], [10 * STEP, 1, STEP]]).T
    reference, _ = _run(exact)
    inputs, tube = (torch.from_numpy(points / rows.std(axis=0)) for points in (rows, reference))
    root = trajectory_distance_weights(inputs, tube, strength).sqrt().numpy()[:, None]
    model = np.linalg.lstsq(root * rows, root * after, rcond=None)[0]
    return float(np.mean((fresh @ model - _next(fresh)) ** 2)), _run(model)[1]
