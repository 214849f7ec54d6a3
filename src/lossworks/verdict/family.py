"""Several arms against one reference: p-values that hold for all of them together."""

import numpy as np
import numpy.typing as npt

from lossworks.checks import shown
from lossworks.metrics.arrays import Floats, as_floats
from lossworks.roles import cite

__all__ = ["step_down"]

DRAWS = 1 << 15
"""How many draws the distribution of the smallest p-value is found from."""


@cite("romano2005stepwise", helps=("ranking systems",))
def step_down(p_values: npt.ArrayLike, correlation: npt.ArrayLike) -> Floats:
    r"""Adjust p-values for their number, step by step, by the distribution of the smallest one.

    The arms' statistics share the reference and the test rows, so they are correlated, and Holm's method, which knows
    nothing of that, asks for more than it needs. Here each p-value is compared with the smallest p-value of those arms
    that are not decided yet, under normal statistics with the given correlation:

    .. math::
        \tilde p_{(j)} = \max_{i \le j} \, \Pr\Bigl( \min_{l \ge i} P_l \le p_{(i)} \Bigr),
        \qquad P_l = 2\, \Phi(-|Z_l|), \quad Z \sim N(0, \Sigma)

    The probability is found from 32,768 fixed draws, never below the p-value itself nor above Holm's bound. So the same
    p-values always give the same answer.

    Args:
        p_values: Two-sided p-values, one an arm, ``(arms,)``.
        correlation: The correlation of the arms' statistics, ``(arms, arms)``.

    Returns:
        The adjusted p-values, ``(arms,)``.

    Raises:
        ValueError: p-values outside [0, 1], a correlation of another shape or outside [-1, 1].

    Papers: romano2005stepwise

    >>> step_down([0.01, 0.04], np.eye(2)).round(2)
    array([0.02, 0.04])
    """
    p = as_floats("p_values", p_values)
    sigma = as_floats("correlation", correlation)
    if p.ndim != 1 or (len(p) and (p.min() < 0 or p.max() > 1)):
        raise ValueError(f"p_values must be numbers in [0, 1], one an arm, got {shown(p.tolist())}")
    if sigma.shape != (len(p), len(p)) or (len(p) and np.abs(sigma).max() > 1 + 1e-9):
        raise ValueError(
            f"correlation must be of shape ({len(p)}, {len(p)}) and in [-1, 1], got {sigma.shape}"
            + (f" up to {np.abs(sigma).max():.3g}" if sigma.size else "")
        )
    if len(p) < 2:
        return p
    from scipy.special import ndtr  # slow to import, and used here alone

    order = np.argsort(p, kind="stable")
    values, vectors = np.linalg.eigh(sigma[np.ix_(order, order)])
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(p))) @ root.T
    drawn = 2 * ndtr(-np.abs(draws))
    smallest = np.minimum.accumulate(drawn[:, ::-1], axis=1)[:, ::-1]
    adjusted, largest = np.empty(len(p)), 0.0
    for place, arm in enumerate(order):
        reached = float((smallest[:, place] <= p[arm]).mean())
        largest = max(largest, float(np.clip(reached, p[arm], min(1.0, (len(p) - place) * p[arm]))))
        adjusted[arm] = largest
    return adjusted
