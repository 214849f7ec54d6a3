"""Trimmed weights: the mean over all rows except those with the largest losses."""

from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_between
from lossworks.weights.cvar import CVaR
from lossworks.weights.worst_case import Solution, WorstCaseWeights

__all__ = ["TrimmedWeights"]


class TrimmedWeights(WorstCaseWeights):
    r"""Trimmed weights: leave out the share of the batch with the largest losses, taken for wrong labels or outliers.

    .. math::
        \min_w \; \tfrac1n \sum_i w_i \ell_i
        \quad\text{with}\quad 0 \le w_i \le \tfrac{1}{1 - q}, \quad \tfrac1n \sum_i w_i = 1

    The :math:`(1 - q) n` rows with the smallest losses have weight :math:`1 / (1 - q)` (the row at the edge has the
    fraction that is left, which rows of equal loss share) and the others have 0. It is the counterpart of
    :class:`~lossworks.weights.CVaR`, which leaves out the rows with the smallest losses; that is what the authors of
    AdaWAC compare with under the name trim-ratio. The dual variable is the loss at the edge.

    The weights compare the rows of a batch, so a batch that is split must be weighted as a whole:
    :class:`lossworks.Objective` does this, with ``process_group=`` and in its ``micro_batches``.

    Args:
        ratio: q, the share of the batch that is left out, in [0, 1).

    Shape:
        - losses: ``(n,)``; returns ``(n,)``, of mean 1.

    Raises:
        ValueError: ``ratio`` outside [0, 1), or a loss that is NaN or infinite (the error names its row).

    Use it when about that share of the labels is wrong, after some epochs in which the clean rows were learned. Rows of
    rare classes have large losses too, and are left out with the noise.

    Papers: shen2019trimmed, dong2023adawac

    >>> import torch
    >>> TrimmedWeights(ratio=0.5)(torch.tensor([3.0, 1.0, 2.0, 0.0]))
    tensor([0., 2., 0., 2.])
    """

    papers = ("shen2019trimmed", "dong2023adawac")
    helps = ("noisy labels", "outliers")
    settings = ({}, {"ratio": 0.1}, {"ratio": 0.4})

    def __init__(self, ratio: float | Tensor = 0.2) -> None:
        super().__init__()
        self.ratio = check_between("ratio", ratio, 0, 1, open_high=True)

    def _solve(self, losses: Float[Tensor, " n"]) -> Solution:
        value, weights, edge = CVaR(1 - self.ratio)._solve(-losses)
        return Solution(-value, weights, -edge)
