"""The worst distribution within a chi-square ball around the data's own."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_positive
from lossworks.weights.worst_case import Solution, WorstCase, descending, number_like, rank

__all__ = ["ChiSquareDRO"]

_LEAST = 1e-300


class ChiSquareDRO(WorstCase):
    r"""The worst weights whose spread is bounded: to first order the mean plus a price on the losses' spread.

    .. math::
        \max_w \; \tfrac1n \sum_i w_i \ell_i \quad\text{with}\quad
        \tfrac{1}{2n} \sum_i (w_i - 1)^2 \le \rho, \quad w \ge 0, \quad \tfrac1n \sum_i w_i = 1,
        \qquad w_i \propto (\ell_i - \eta)_+

    For a small radius the value is :math:`\bar\ell + \sqrt{2 \rho \mathrm{Var}(\ell)}`; from
    :math:`\rho = (n - 1)/2` on it is the worst row's loss, and ``radius=0`` is the mean. Solved exactly, by sorting;
    the dual variable is :math:`\eta`, below which rows count nothing (:math:`-\infty` at ``radius=0``), with
    :math:`\text{value} = \eta + \sqrt{1 + 2\rho}\, \sqrt{\tfrac1n \sum_i (\ell_i - \eta)_+^2}`.

    The weights compare the rows of a batch, so one that is split must be seen whole: :class:`lossworks.Objective` does,
    with ``process_group=`` and by its ``micro_batches``.

    Args:
        radius: :math:`\rho`, >= 0.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``. The weights couple the batch: see
          :meth:`lossworks.Objective.weigh` for batches that come in pieces.

    Raises:
        ValueError: ``radius < 0``, or a loss that is NaN or infinite, with its row.

    Use it when a part of the rows, not known which, does worse than the rest and should not; not with wrong labels,
    whose losses are large too.

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
        second = 1.0 + 2.0 * number_like(losses, self.radius)  # the mean of w's squares
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
        weights = (losses - (top + mean)).mul_(slope).add_(1.0).relu_()
        weights = weights.div_(weights.mean())
        return Solution(weights @ losses / n, weights, top + mean - slope.reciprocal())
