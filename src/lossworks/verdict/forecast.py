"""What would decide a difference that is unclear: more repeats, or more rows."""

import math

import numpy as np

from lossworks.checks import check_between, check_finite, check_int, check_positive
from lossworks.metrics.arrays import Floats
from lossworks.verdict.crossed import Crossed

__all__ = ["chance_of_decision", "rows_to_decide", "variance_at"]

POWER = 0.8
PRIOR_ROPES = 2.0
"""The spread of true differences that the forecast supposes, in ropes."""


def variance_at(found: Crossed, *, repeats: int, units: int | None = None) -> Floats:
    r"""The variance that each mean would have with other numbers of repeats and of rows, ``(arms,)``.

    .. math::
        V(n', R') = \frac{K}{K - 1} \frac{a + E / R'}{n'} + \frac{F}{R' K}

    with :math:`a`, :math:`F` and :math:`E` the variances ``per_row``, ``per_fit`` and ``per_score``.

    Args:
        found: What :func:`crossed` found.
        repeats: :math:`R'`, >= 1.
        units: :math:`n'`, the number of rows, or of groups where rows are grouped; by default as many as there were.

    Raises:
        TypeError: no :class:`Crossed`.
        ValueError: a number below 1.
    """
    _check_found(found)
    check_int("repeats", repeats, low=1)
    units = found.units if units is None else check_int("units", units, low=1)
    rows = (found.per_row + found.per_score / repeats) / units
    return np.asarray(rows * found.folds / (found.folds - 1) + found.per_fit / (repeats * found.folds))


def chance_of_decision(found: Crossed, *, repeats: int, rope: float, alpha: float = 0.05) -> Floats:
    r"""The chance that each arm would have a verdict after this many repeats, ``(arms,)``.

    The true difference is unknown. Its spread is supposed to be twice the region of practical equivalence, which with
    the variances gives the mean that later repeats lead to: with
    :math:`g(R) = \tau^2 + \frac an + \frac1R (\frac En + \frac FK)` and :math:`\tau = 2\,\text{rope}`,

    .. math::
        \hat\theta_{R'} \sim N\Bigl( \hat\theta_R \frac{g(R')}{g(R)},\; g(R') - \frac{g(R')^2}{g(R)} \Bigr)

    Args:
        found: What :func:`crossed` found.
        repeats: How many repeats there would be in all, at least those that there are.
        rope: Half the width of the region of practical equivalence, > 0.
        alpha: The level of the verdict "better" or "worse"; for several arms, the level that is left for each.

    Returns:
        Chances in [0, 1].

    Raises:
        ValueError: fewer repeats than there are, ``rope <= 0``, ``alpha`` outside (0, 1).
    """
    from scipy.special import ndtr, stdtrit  # slow to import, and used here alone

    _check_found(found)
    check_int("repeats", repeats, low=found.repeats)
    check_positive("rope", rope)
    check_between("alpha", alpha, 0, 1, open_low=True, open_high=True)
    before, after = (_spread(found, count, rope) for count in (found.repeats, repeats))
    center = found.mean * after / before
    scale = np.sqrt(np.maximum(after - after**2 / before, 0.0))
    variance = variance_at(found, repeats=repeats)
    degrees = found.degrees
    far = stdtrit(degrees, 1 - alpha / 2) * np.sqrt(variance)
    near = rope - stdtrit(degrees, 0.95) * np.sqrt(variance + found.grain)

    def below(bound: Floats) -> Floats:
        distance = bound - center
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(scale > 0, ndtr(distance / scale), distance >= 0))

    decided = 1 - below(far) + below(-far)
    equal = np.where(near > 0, below(near) - below(-near), 0.0)
    return np.clip(decided + np.where(near < far, equal, 1.0), 0.0, 1.0)


def rows_to_decide(found: Crossed, difference: float, *, repeats: int, alpha: float = 0.05) -> Floats:
    r"""The fewest rows (or groups) at which a true difference of this size is found with a chance of 0.8, ``(arms,)``.

    That is the smallest :math:`n'` with :math:`\sqrt{V(n', R')} \le |\delta| / (t + 0.84)`. Ask for a difference that
    matters, never for the one that was observed.

    Args:
        found: What :func:`crossed` found.
        difference: :math:`\delta`, in the metric's unit, not 0.
        repeats: :math:`R'`, >= 1.
        alpha: The level of the verdict.

    Returns:
        Whole numbers, or infinity where the fitted models alone vary too much at these repeats.

    Raises:
        ValueError: a difference of 0 or that is not finite, repeats below 1, ``alpha`` outside (0, 1).
    """
    from scipy.special import ndtri, stdtrit

    _check_found(found)
    check_finite("difference", difference)
    check_positive("abs(difference)", abs(difference))
    check_int("repeats", repeats, low=1)
    check_between("alpha", alpha, 0, 1, open_low=True, open_high=True)
    allowed = (abs(difference) / (stdtrit(found.degrees, 1 - alpha / 2) + float(ndtri(POWER)))) ** 2
    left = allowed - found.per_fit / (repeats * found.folds)
    each = (found.per_row + found.per_score / repeats) * found.folds / (found.folds - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(left > 0, np.maximum(2.0, np.ceil(each / left)), math.inf))


def _check_found(found: object) -> None:
    if not isinstance(found, Crossed):
        raise TypeError(f"found must be a Crossed, as crossed() returns it, got {type(found).__name__}")


def _spread(found: Crossed, repeats: int, rope: float) -> Floats:
    """The variance of the mean over true differences, rows and models, ``(arms,)``."""
    varying = (found.per_score / found.units + found.per_fit / found.folds) / repeats
    return np.asarray((PRIOR_ROPES * rope) ** 2 + found.per_row / found.units + varying)
