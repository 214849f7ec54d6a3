"""Metrics of real-valued predictions."""

import numpy as np
from jaxtyping import Float

from lossworks.metrics.arrays import Array, Floats, as_floats

__all__ = ["mae", "poisson_deviance", "r2", "rmse"]


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


def poisson_deviance(values: Float[Array, " n"], target: Float[Array, " n"]) -> float:
    r"""The mean deviance of counts from the expected counts that were predicted; 0 where each is met exactly.

    .. math::
        \tfrac2n \sum_i \Big( y_i \log \frac{y_i}{\hat y_i} - y_i + \hat y_i \Big)

    It is twice the log-likelihood, under Poisson distributions, that the predictions fall short of a perfect fit. An
    error of one count weighs more where few are expected.

    Args:
        values: ``(n,)``, the expected counts, > 0.
        target: ``(n,)``, the counts that were observed, >= 0.

    Raises:
        ValueError: shapes that don't match, no rows, NaN, an infinite or negative target, a prediction that is not > 0.

    >>> round(poisson_deviance(np.array([2.0, 1.0]), np.array([2.0, 0.0])), 4)
    1.0
    """
    predicted, observed = _pairs(values, target)
    if (negative := observed < 0).any():
        row = int(negative.argmax())
        raise ValueError(f"target must be counts >= 0, got {observed[row]:g} in row {row}")
    if (useless := predicted <= 0).any():
        row = int(useless.argmax())
        raise ValueError(f"values must be expected counts > 0, got {predicted[row]:g} in row {row}")
    if np.isinf(predicted).any():
        return float("inf")
    seen = np.where(observed > 0, observed, 1)  # none observed: the logarithm has no part in it
    return float(2 * (observed * (np.log(seen) - np.log(predicted)) - observed + predicted).mean())


def _pairs(values: Array, target: Array) -> tuple[Floats, Floats]:
    predicted, observed = as_floats("values", values), as_floats("target", target)
    if predicted.ndim != 1 or predicted.shape != observed.shape or not len(predicted):
        raise ValueError(
            f"values and target must have one shape (n,), n >= 1, got {predicted.shape} and {observed.shape}"
        )
    if not np.isfinite(observed).all():
        raise ValueError(f"target must be finite, got Inf in row {int((~np.isfinite(observed)).argmax())}")
    return predicted, observed
