"""Objective mismatch: whether the quantity that a model is trained for goes with the one that it is used for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_between, check_floating, check_int, check_same_shape
from lossworks.diagnose.drawing import axes
from lossworks.roles import cite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Correlation", "ObjectiveMismatchReport", "objective_mismatch"]


class Correlation(NamedTuple):
    """A correlation coefficient in [-1, 1] and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ObjectiveMismatchReport:
    r"""Objective mismatch: how far a proxy (a validation likelihood) and the metric that counts (a reward) agree.

    .. math:: r = \mathrm{corr}(p_i, m_i), \qquad i = 1, \dots, k \text{ saved models}

    Attributes:
        pearson: The correlation of the numbers.
        spearman: The correlation of their ranks.
        kendall: The share of pairs of models ordered alike, minus the share ordered the other way.
        models: The number of models k.

    Papers: lambert2020mismatch

    >>> objective_mismatch(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 5.0])).kendall.value
    1.0
    """

    papers: ClassVar[tuple[str, ...]] = ("lambert2020mismatch",)
    helps: ClassVar[tuple[str, ...]] = ("shift",)

    pearson: Correlation
    spearman: Correlation
    kendall: Correlation
    models: int

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the coefficients with their intervals, on the whole range from -1 to 1."""
        ax = axes(ax)
        names = ("kendall", "spearman", "pearson")
        found: list[Correlation] = [getattr(self, name) for name in names]
        ax.axvline(0.0, color="0.7", linewidth=1)
        ax.hlines(names, [each.low for each in found], [each.high for each in found])
        ax.plot([each.value for each in found], names, "o")
        ax.set(xlim=(-1.05, 1.05), ylim=(-0.5, 2.5), xlabel=f"correlation over {self.models} models")
        return ax


@cite("lambert2020mismatch", helps=("shift",))
def objective_mismatch(
    proxy: Float[Tensor, " k"],
    metric: Float[Tensor, " k"],
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> ObjectiveMismatchReport:
    r"""Correlate a proxy with the metric that counts, over models, with percentile bootstrap intervals.

    Args:
        proxy: One number per model; a larger number is meant to be better.
        metric: One number per model of the metric that counts, in the same order of models.
        resamples: The number of bootstrap samples of models, >= 1; samples in which all values are equal are left out.
        level: The confidence level of the intervals, in (0, 1).
        seed: The seed of the bootstrap samples.

    Returns:
        The three correlations with their intervals.

    Raises:
        ValueError: fewer than 3 models, shapes that don't match, values that are all equal or not finite, or
            ``resamples``, ``level``, ``seed`` out of range.
        TypeError: not floating-point.

    Papers: lambert2020mismatch

    >>> objective_mismatch(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])).spearman.value
    -1.0
    """
    from scipy import stats

    check_int("resamples", resamples, low=1, high=10**6)
    check_between("level", level, 0, 1, open_low=True, open_high=True)
    check_int("seed", seed, low=0)
    for name, values in (("proxy", proxy), ("metric", metric)):
        check_floating(name, values)
        if values.ndim != 1 or len(values) < 3:
            raise ValueError(f"{name} must have shape (k,) with k >= 3, got {tuple(values.shape)}")
        given = values.detach().double()
        if not bool(given.isfinite().all()) or bool(given.std() == 0):
            raise ValueError(f"{name} must be finite and not all alike")
    check_same_shape(proxy, metric, names=("proxy", "metric"))
    pairs = torch.stack([proxy.detach().cpu().double(), metric.detach().cpu().double()]).numpy()
    # Scaled to at most 1, so that no square overflows.
    pairs = pairs / np.abs(pairs).max(axis=1, keepdims=True)
    draws = np.random.default_rng(seed).integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
    usable = [pairs[:, draw] for draw in draws if (np.ptp(pairs[:, draw], axis=1) > 0).all()]
    tail = 50 * (1 - float(level))

    def correlation(of: object) -> Correlation:
        assert callable(of)
        value = float(of(*pairs).statistic)
        found = [float(of(*drawn).statistic) for drawn in usable] or [value]
        low, high = np.percentile(found, [tail, 100 - tail])
        return Correlation(round(value, 12), float(low), float(high))

    return ObjectiveMismatchReport(
        correlation(stats.pearsonr), correlation(stats.spearmanr), correlation(stats.kendalltau), pairs.shape[1]
    )
