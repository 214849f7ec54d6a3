"""Chi-square DRO: the worst distribution within a chi-square ball around the data's own."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_positive
from lossworks.weights.worst_case import Solution, WorstCaseWeights, descending, number_like, number_of, rank

__all__ = ["ChiSquareDRO"]

_LEAST = 1e-300
_STEPS = 30
"""After so many narrowing steps sorting is used instead; five are mostly enough, far outliers need more."""
_MANY, _EVERY = 16_384, 16
"""With more than _MANY rows, the search starts from the edge of a sample, every _EVERY-th row."""


class ChiSquareDRO(WorstCaseWeights):
    r"""Chi-square DRO: worst-case weights of bounded spread; about the mean loss plus a price on the losses' spread.

    .. math::
        \max_w \; \tfrac1n \sum_i w_i \ell_i \quad\text{with}\quad
        \tfrac{1}{2n} \sum_i (w_i - 1)^2 \le \rho, \quad w \ge 0, \quad \tfrac1n \sum_i w_i = 1,
        \qquad w_i \propto (\ell_i - \eta)_+

    For a small radius the value is :math:`\bar\ell + \sqrt{2 \rho \mathrm{Var}(\ell)}`; from :math:`\rho = (n - 1)/2`
    on it is the worst row's loss, and ``radius=0`` is the mean. The problem is solved exactly. The dual variable is
    :math:`\eta`: rows whose loss is below it have weight 0 (it is :math:`-\infty` at ``radius=0``), and
    :math:`\text{value} = \eta + \sqrt{1 + 2\rho}\, \sqrt{\tfrac1n \sum_i (\ell_i - \eta)_+^2}`.

    The weights compare the rows of a batch, so a batch that is split must be weighted as a whole:
    :class:`lossworks.Objective` does this, with ``process_group=`` and in its ``micro_batches``.

    Args:
        radius: :math:`\rho`, the bound on the weights' spread, >= 0.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``. For batches that come in pieces see :meth:`lossworks.Objective.weigh`.

    Raises:
        ValueError: ``radius < 0``, or a loss that is NaN or infinite (the error names its row).

    Use it when some rows do worse than the rest and should not, and it is not known which. Not when labels are wrong:
    such rows have large losses too.

    Papers: namkoong2017variance, levy2020largescale

    >>> ChiSquareDRO(radius=0.5)(torch.tensor([1.0, 3.0]))
    tensor([0., 2.])
    """

    papers = ("namkoong2017variance", "levy2020largescale")
    settings = ({}, {"radius": 0.1}, {"radius": 2.0})

    def __init__(self, radius: float | Tensor = 0.5) -> None:
        super().__init__()
        self.radius = check_positive("radius", radius, allow_zero=True)

    def _solve(self, losses: Float[Tensor, " n"]) -> Solution:
        radius = number_of(losses, self.radius)
        found = None if isinstance(radius, Tensor) else _by_narrowing(losses, 1.0 + 2.0 * radius)
        return _by_sorting(losses, number_like(losses, self.radius)) if found is None else found


def _by_narrowing(losses: Float[Tensor, " n"], second: float) -> Solution | None:
    losses = losses.double()
    top = losses.max()
    below = losses - top
    sampled = _narrowed(below[::_EVERY].contiguous(), second) if len(below) > _MANY else None
    found = (_narrowed(below, second, sampled[0]) if sampled else None) or _narrowed(below, second)
    if found is None:
        return None
    edge, excess = found
    weights = excess.div_(excess.mean())
    return Solution(weights @ losses / float(len(losses)), weights, top + edge)


def _narrowed(
    below: Float[Tensor, " n"], second: float, edge: float = -math.inf
) -> tuple[float, Float[Tensor, " n"]] | None:
    """Find the edge by narrowing the set of rows above it; return the edge and how far each row is above it.

    Once the rows above it are known, the edge has a closed form. So a set of rows gives an edge, and the edge gives the
    next set, until the two agree. Rows below the true edge that are counted as active add to the spread, so, starting
    from all rows, each edge lies at or below the true one and the set only narrows. The result is None where that takes
    too many steps, or where rounding hides which rows share the largest loss.
    """
    rows, excess = 0, torch.empty_like(below)
    for _ in range(_STEPS):
        if edge == -math.inf:
            origin, active = float(below.mean()), len(below)
            torch.sub(below, origin, out=excess)
        else:
            origin = edge
            active = int(torch.sub(below, origin, out=excess).relu_().sign().sum())  # as floats, faster than counting
        if active == rows:
            return edge, excess
        surplus = second / len(below) * active - 1.0
        if surplus <= 0.0:
            return None
        rows, average = active, float(excess.sum()) / active
        variance = max(float(excess @ excess) / rows - average * average, 0.0)
        edge = origin + average - math.sqrt(variance / surplus)
    return None


def _by_sorting(losses: Float[Tensor, " n"], radius: Tensor) -> Solution:
    second = 1.0 + 2.0 * radius  # the mean of w's squares
    ordered, losses = descending(losses), losses.double()
    n, top = float(len(losses)), ordered[0]  # a float, as the product with an int copies that as a tensor first
    below = ordered - top
    sums, squares = below.cumsum(0), (below * below).cumsum(0)
    # At eta = the j-th largest loss the rows above it are active: sum (l - eta) and sum (l - eta)^2 over them.
    first = torch.addcmul(sums, rank(len(losses), losses), below, value=-1)
    spread = torch.addcmul(squares, below, sums + first, value=-1)
    active = (spread >= (second / n) * first * first).sum()
    last, active = (active - 1)[None], active.double()
    mean = sums.gather(0, last)[0] / active
    variance = (squares.gather(0, last)[0] / active - mean * mean).relu()
    slope = ((second / n * active - 1.0).relu() / variance.clamp(min=_LEAST)).sqrt()
    slope = torch.where(variance > 0.0, slope, 1.0 / _LEAST)  # rows of one loss are active, and nothing below it
    weights = ((losses - (top + mean)) * slope + 1.0).relu()
    weights = weights / weights.mean()
    return Solution(weights @ losses / n, weights, top + mean - slope.reciprocal())
