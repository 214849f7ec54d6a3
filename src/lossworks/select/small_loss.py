"""Find mislabelled rows by their large loss."""

from jaxtyping import Bool, Float
from torch import Tensor

from lossworks.checks import check_between
from lossworks.roles import Selector
from lossworks.weights.mixture import probability_of_high

__all__ = ["SmallLossGMMSelector"]


class SmallLossGMMSelector(Selector):
    r"""Finds noisy rows by their large loss: those in the higher of two normal modes that are fitted to the losses.

    .. math::
        i \text{ noisy} \iff P(\text{high} \mid s_i) > t, \qquad
        s_i = \frac{\ell_i - \min \ell}{\max \ell - \min \ell}, \quad
        s \sim \sum_{m \in \{\text{low}, \text{high}\}} \pi_m\, N(\mu_m, \sigma_m^2)

    A network learns clean labels before it learns wrong ones, so early in training the losses have two modes. Call it
    once an epoch on the losses of the whole training set, to which scikit-learn fits the mixture. If they are split
    over ranks, gather the losses first, so that all ranks find the same rows.

    Args:
        threshold: t, the probability above which a row is taken for noisy, in [0, 1).

    Raises:
        ValueError: ``threshold`` outside [0, 1), losses that are not ``(N,)`` or hold NaN.

    Use it after a short warm-up, on the losses of all rows, computed without gradients. Where the losses have a single
    mode, because all labels are clean or all are memorised, it still divides them in two. An infinite loss counts as
    the largest finite one; if all losses are the same, all rows count as clean.

    Papers: albert2024accurate

    >>> import torch
    >>> SmallLossGMMSelector()(torch.tensor([0.1, 0.2, 0.1, 0.2, 5.0, 5.1]))
    tensor([False, False, False, False,  True,  True])
    """

    papers = ("albert2024accurate",)
    helps = ("noisy labels",)

    def __init__(self, threshold: float = 0.95) -> None:
        self.threshold = check_between("threshold", threshold, 0, 1, open_high=True)

    def probability(self, losses: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The probability that each row is noisy."""
        return probability_of_high("losses", losses)

    def __call__(self, losses: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Which rows are noisy."""
        return self.probability(losses) > self.threshold
