"""Conditional value at risk (CVaR): the mean over the worst share of the rows, plain and smoothed."""

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lossworks.checks import check_between, check_positive
from lossworks.weights.worst_case import Solution, WorstCaseWeights, descending, in_numpy, number_like, number_of, rank

__all__ = ["CVaR"]


class CVaR(WorstCaseWeights):
    r"""Conditional value at risk (CVaR): the mean over the worst share of the batch, the rows with the largest losses.

    .. math::
        \max_w \; \tfrac1n \sum_i w_i \ell_i - \tau\, \tfrac1n \sum_i w_i \log w_i
        \quad\text{with}\quad 0 \le w_i \le \tfrac1\alpha, \quad \tfrac1n \sum_i w_i = 1

    With ``smoothing`` :math:`\tau = 0` the worst :math:`\alpha n` rows have weight :math:`1/\alpha` (the row at the
    edge has the fraction that is left, which rows of equal loss share) and the rest have 0; the dual variable is the
    value at risk t, with :math:`\text{value} = t + \tfrac{1}{\alpha n} \sum_i (\ell_i - t)_+`. With :math:`\tau > 0`
    the weights are :math:`w_i = \min(1/\alpha, e^{(\ell_i - \eta)/\tau})`, which change smoothly as the losses do; the
    dual variable is :math:`\eta`. ``alpha=1`` is the mean, :math:`\alpha \le 1/n` the worst row. The problem is solved
    exactly.

    The weights compare the rows of a batch, so a batch that is split must be weighted as a whole:
    :class:`lossworks.Objective` does this, with ``process_group=`` and in its ``micro_batches``.

    Args:
        alpha: The share of the rows that counts, in (0, 1].
        smoothing: :math:`\tau`, the price on uneven weights, in loss units, >= 0.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``. For batches that come in pieces see :meth:`lossworks.Objective.weigh`.

    Raises:
        ValueError: ``alpha`` outside (0, 1], ``smoothing < 0``, or a loss that is NaN or infinite (the error names its
            row).

    Use it when the worst rows matter. Not where labels are noisy: wrong labels have large losses too. A small ``alpha``
    uses few rows of each batch, so take larger batches, or smooth.

    Papers: rockafellar2000cvar, levy2020largescale

    >>> CVaR(alpha=0.5)(torch.tensor([3.0, 1.0, 2.0, 0.0]))
    tensor([2., 0., 2., 0.])
    """

    papers = ("rockafellar2000cvar", "levy2020largescale")
    settings = ({}, {"alpha": 0.2}, {"alpha": 0.5, "smoothing": 0.5})

    def __init__(self, alpha: float | Tensor = 0.5, smoothing: float | Tensor = 0.0) -> None:
        super().__init__()
        self.alpha = check_between("alpha", alpha, 0, 1, open_low=True)
        self.smoothing = check_positive("smoothing", smoothing, allow_zero=True)

    def _solve(self, losses: Float[Tensor, " n"]) -> Solution:
        plain = _plain(losses, number_of(losses, self.alpha))
        if not isinstance(self.smoothing, Tensor) and self.smoothing == 0:
            return plain
        alpha, tau = (number_like(losses, number) for number in (self.alpha, self.smoothing))
        smooth = _smoothed(losses, alpha, torch.where(tau > 0, tau, torch.ones_like(tau)))
        return Solution(*(torch.where(tau > 0, s, p) for s, p in zip(smooth, plain, strict=True)))


def _plain(losses: Float[Tensor, " n"], alpha: float | Tensor) -> Solution:
    rows = alpha * len(losses)
    if not isinstance(rows, Tensor):
        return _by_numpy(in_numpy(losses), rows, losses)
    place = (rows.ceil().long() - 1).clamp(0, len(losses) - 1)
    value_at_risk = descending(losses).gather(0, place[None]).squeeze(0)
    losses = losses.double()
    above, tied = (losses > value_at_risk).double(), (losses == value_at_risk).double()
    share = (rows - above.sum()) / tied.sum()  # where alpha n < 1, the largest gets all
    weights = (above + tied * share) / alpha
    return Solution(weights @ losses / len(losses), weights, value_at_risk)


def _by_numpy(values: NDArray[np.floating], rows: float, like: Float[Tensor, " n"]) -> Solution:
    """The same in numpy, which selects and compares several times as fast as torch does."""
    number = len(values)
    rising = number - min(max(math.ceil(rows), 1), number)
    value_at_risk = np.partition(values, rising)[rising]
    above, tied = values > value_at_risk, values == value_at_risk
    share = (rows - np.count_nonzero(above)) / np.count_nonzero(tied)
    found = above * (number / rows)
    found[tied] = share * number / rows
    weights = torch.from_numpy(found).to(like.device)
    return Solution(weights @ like.double() / number, weights, like.new_tensor(value_at_risk, dtype=torch.float64))


def _smoothed(losses: Float[Tensor, " n"], alpha: Tensor, tau: Tensor) -> Solution:
    """The k largest losses get the weight cap and the rest a softmax, for the smallest k of which this holds."""
    ordered, losses = descending(losses), losses.double()
    capped = rank(len(losses), losses) - 1
    free = len(losses) - capped / alpha
    with torch.no_grad():  # how many are capped
        sums = (ordered / tau).flip(0).logcumsumexp(0).flip(0)
        levels = tau * (sums - torch.where(free > 0, free, torch.ones_like(free)).log())
        holds = (ordered - levels <= -tau * alpha.log()) & (free > 0)
        first = holds.to(torch.int8).argmax()
    rest = torch.where(capped >= first, ordered / tau, -torch.inf).logsumexp(dim=0)
    left = free.gather(0, first[None]).squeeze(0)
    level = tau * (rest - torch.where(left > 0, left, torch.ones_like(left)).log())
    # Where alpha n rows at the cap have all the mass, no row is free: the level is anything up to the last one's.
    all_capped = (len(losses) * alpha).ceil().long().clamp(1, len(losses)) - 1
    edge = ordered.gather(0, all_capped[None]).squeeze(0) + tau * alpha.log()
    eta = torch.where(holds.any(), level, edge)
    log_weights = torch.minimum((losses - eta) / tau, -alpha.log())
    weights = log_weights.exp()
    value = (weights * (losses - tau * log_weights)).mean()
    return Solution(value, weights, eta)
