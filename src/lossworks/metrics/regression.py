"""Metrics of real-valued predictions."""

import numpy as np
from jaxtyping import Float

from lossworks.metrics.arrays import Array, Floats, as_floats

__all__ = ["mae", "r2", "rmse"]


def rmse(values: Float[Array, " n"], target: Float[Array, " n"]) -> float:
    r"""RMSE: the root of the mean squared error, in the target's unit.

    .. math::
        \sqrt{\tfrac1n \sum_i (\hat y_i - y_i)^2}

    Args:
        values: ``(n,)``, the predictions.
        target: ``(n,)``, what was observed.

    Raises:
        ValueError: shapes that don't match, no rows, NaN, an infinite target.

    >>> rmse(np.array([1.0, 5.0]), np.array([1.0, 3.0])) ** 2
    2.0000000000000004
    """
    predicted, observed = _pairs(values, target)
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.square(predicted - observed).mean()))


def mae(values: Float[Array, " n"], target: Float[Array, " n"]) -> float:
    r"""MAE: the mean absolute error, in the target's unit.

    .. math::
        \tfrac1n \sum_i |\hat y_i - y_i|

    Args and raises: as :func:`rmse`.

    >>> mae(np.array([1.0, 5.0]), np.array([1.0, 3.0]))
    1.0
    """
    predicted, observed = _pairs(values, target)
    with np.errstate(over="ignore"):
        return float(np.abs(predicted - observed).mean())


def r2(values: Float[Array, " n"], target: Float[Array, " n"]) -> float:
    r"""R²: the share of the target's variance that the predictions explain; 0 for its mean, below 0 for worse.

    .. math::
        1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    A target that does not vary gives 1 where it is met exactly and 0 otherwise.

    Args and raises: as :func:`rmse`.

    >>> r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    0.7857142857142857
    """
    predicted, observed = _pairs(values, target)
    with np.errstate(over="ignore", invalid="ignore"):
        left, spread = np.square(predicted - observed).sum(), np.square(observed - observed.mean()).sum()
        return float(1 - left / spread) if spread else float(left == 0)


def _pairs(values: Array, target: Array) -> tuple[Floats, Floats]:
    predicted, observed = as_floats("values", values), as_floats("target", target)
    if predicted.ndim != 1 or predicted.shape != observed.shape or not len(predicted):
        raise ValueError(
            f"values and target must have one shape (n,), n >= 1, got {predicted.shape} and {observed.shape}"
        )
    if not np.isfinite(observed).all():
        raise ValueError(f"target must be finite, got Inf in row {int((~np.isfinite(observed)).argmax())}")
    return predicted, observed
