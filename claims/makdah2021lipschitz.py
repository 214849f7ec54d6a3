"""Lipschitz policies: a looser bound on the slope controls better undisturbed, and is thrown off further."""

import numpy as np
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from claims.record import Measurement
from lossworks.certify import LipschitzRegressor
from lossworks.diagnose import closed_loop_rollout

PAPER = "makdah2021lipschitz"
RULE = (
    "A double integrator, 80 demonstrations by a linear-quadratic regulator with a sine added and noise of 0.05, 60 "
    "steps from 20 starts, measurements off by 0.5 in l2, means of 5 seeds: over slopes 0.5, 1 and 2 the training loss "
    "falls, the undisturbed cost falls, and what the disturbance adds to the cost rises at each step; and no input of "
    "any seed is off by more than the slope times 0.5."
)

SEEDS, ROWS, STARTS, STEPS = 5, 80, 20, 60
SLOPES = (0.5, 1.0, 2.0, 3.0, 5.0)
DECIDING = 3
STEP, NOISE, OFF = 0.1, 0.05, 0.5
A = torch.tensor([[1.0, STEP], [0.0, 1.0]], dtype=torch.float64)
B = torch.tensor([[0.0], [STEP]], dtype=torch.float64)


def measure() -> Measurement:
    runs = np.array([[_scores(slope, seed) for seed in range(SEEDS)] for slope in SLOPES])
    loss, nominal, added = runs[:, :, :3].mean(axis=1).T
    falls = all(bool((np.diff(column[:DECIDING]) < 0).all()) for column in (loss, nominal))
    rises = bool((np.diff(added[:DECIDING]) > 0).all())
    certified = bool((runs[:, :, 3] <= 1 + 1e-9).all())
    return Measurement(
        shown=falls and rises and certified,
        measured="training loss, undisturbed cost, what the disturbance adds, by slope: "
        + "; ".join(f"{a:g}: {loss[n]:.3f}, {nominal[n]:.1f}, {added[n]:.1f}" for n, a in enumerate(SLOPES))
        + f"; inputs off by at most {runs[:, :, 3].max():.3f} of what is certified",
        numbers={
            "training loss by slope": loss.tolist(),
            "undisturbed cost by slope": nominal.tolist(),
            "what the disturbance adds by slope": added.tolist(),
            "largest error of an input over the certified one by slope": runs[:, :, 3].max(axis=1).tolist(),
            **{f"what the disturbance adds, slope {a:g}": runs[n, :, 2].tolist() for n, a in enumerate(SLOPES)},
        },
        seeds=SEEDS,
    )


def _next(state: Tensor, given: Tensor) -> Tensor:
    return state @ A.T + given @ B.T


def _scores(slope: float, seed: int) -> tuple[float, float, float, float]:
    """Training loss, undisturbed cost, what the disturbance adds, and the largest error over the certified one."""
    draws = torch.Generator().manual_seed(seed)
    p = solve_discrete_are(A.numpy(), B.numpy(), np.eye(2), np.eye(1))
    gain = torch.from_numpy(np.linalg.solve(np.eye(1) + B.numpy().T @ p @ B.numpy(), B.numpy().T @ p @ A.numpy()))
    x = 6 * torch.rand(ROWS, 2, generator=draws, dtype=torch.float64) - 3
    expert = -(x @ gain.T)[:, 0] + 0.5 * torch.sin(2 * x[:, 0])
    u = expert + NOISE * torch.randn(ROWS, generator=draws, dtype=torch.float64)
    policy = LipschitzRegressor(slope).fit(x, u)
    start = 4 * torch.rand(STARTS, 2, generator=draws, dtype=torch.float64) - 2
    error = torch.randn(STEPS, STARTS, 2, generator=draws, dtype=torch.float64)
    error = OFF * error / error.norm(dim=2, keepdim=True)
    clean = closed_loop_rollout(policy, _next, start, STEPS)
    thrown = closed_loop_rollout(policy, _next, start, STEPS, disturbance=error)
    with torch.no_grad():
        seen = thrown.states[:-1].flatten(0, 1)
        moved = (policy(seen + error.flatten(0, 1)) - policy(seen)).abs().max() / (slope * OFF)
        loss = (policy(x) - u).square().mean()
    costs = [float((run.states.square().sum() + run.inputs.square().sum()) / STARTS) for run in (clean, thrown)]
    return float(loss), costs[0], costs[1] - costs[0], float(moved)
