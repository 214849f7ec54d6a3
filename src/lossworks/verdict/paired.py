"""Tests over the folds of a repeated cross-validation, corrected for the training rows that the folds share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossworks.checks import as_float, check_between, check_positive, check_sequence, shown
from lossworks.metrics.arrays import as_floats
from lossworks.roles import cite

__all__ = ["Paired", "holm", "paired_test"]


@dataclass(frozen=True)
class Paired:
    """A mean over paired folds with its interval, p-value and probabilities, which are None with a single fold."""

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    above: float | None = None
    within: float | None = None
    below: float | None = None


@cite("nadeau2003inference", "benavoli2017time", helps=("ranking systems",))
def paired_test(
    values: Sequence[float] | npt.NDArray[np.float64], *, test_fraction: float, rope: float = 0.0, level: float = 0.95
) -> Paired:
    r"""Corrected t-test of the mean over the folds of a repeated cross-validation, with interval and probabilities.

    .. math::
        t = \frac{\bar d}{s \sqrt{\frac1J + \frac{\rho}{1 - \rho}}} \sim t_{J-1}, \qquad \rho = \frac{n_\text{test}}{n}

    The same scale gives the posterior of the mean, a Student t around :math:`\bar d`, and with it the probabilities
    that the mean is above ``rope``, within it, or below ``-rope``. Two cases have no scale. If all values are 0, the
    mean is 0 for certain (p = 1). If all values are another, single number, p is that of the sign test,
    :math:`2^{1 - J}`.

    Args:
        values: ``(J,)``, one a fold and repeat.
        test_fraction: :math:`\rho`, the share of the rows in each test fold, in (0, 1).
        rope: Half the width of the region of practical equivalence, >= 0.
        level: The level of the interval, in (0, 1).

    Returns:
        A :class:`Paired`; with a single value it has only the mean.

    Raises:
        ValueError: no values, NaN or Inf among them, an argument out of range.

    Papers: nadeau2003inference, benavoli2017time

    >>> paired_test([0.02, 0.03, 0.025, 0.02], test_fraction=0.25).p < 0.05
    True
    """
    check_between("test_fraction", test_fraction, 0, 1, open_low=True, open_high=True)
    check_between("level", level, 0, 1, open_low=True, open_high=True)
    check_positive("rope", rope, allow_zero=True)
    test_fraction, level, rope = (as_float(number) for number in (test_fraction, level, rope))
    d = as_floats("values", values)
    if d.ndim != 1 or not len(d) or not np.isfinite(d).all():
        raise ValueError(f"values must be finite numbers, one a fold, got {shown(d.tolist())}")
    size = 2.0 ** (math.frexp(np.abs(d).max())[1] - 1)  # of which no square overflows
    mean, degrees = size * float((d / size).mean()), len(d) - 1
    if not degrees:
        return Paired(mean)
    spread = size * float((d / size).std(ddof=1))
    if spread <= 1e-12 * abs(mean):
        p = 1.0 if mean == 0 else 2.0**-degrees
        return Paired(mean, mean, mean, p, float(mean > rope), float(abs(mean) <= rope), float(mean < -rope))
    from scipy.special import stdtr, stdtrit  # slow to import, and used here alone

    scale = spread * math.sqrt(1 / len(d) + test_fraction / (1 - test_fraction))
    half = scale * float(stdtrit(degrees, (1 + level) / 2))
    above, below = (float(stdtr(degrees, (side * mean - rope) / scale)) for side in (1, -1))
    p = 2 * float(stdtr(degrees, -abs(mean) / scale))
    return Paired(mean, mean - half, mean + half, p, above, max(0.0, 1 - above - below), below)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment; a missing p-value stays missing, and counts as a test that found nothing.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    check_sequence("p_values", p_values)
    for p in p_values:
        if p is not None:
            check_between("p_values", p, 0, 1)
    found = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for position, (p, i) in enumerate(found):
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        adjusted[i] = largest
    return adjusted
