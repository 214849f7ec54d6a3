"""Rows whose loss is large are taken for mislabelled."""

from jaxtyping import Bool, Float
from torch import Tensor

from lossworks.checks import check_between
from lossworks.weights.mixture import probability_of_high

__all__ = ["SmallLossGMMSelector"]


class SmallLossGMMSelector:
    r"""Takes a row for noisy when its loss belongs to the higher of two modes.

    .. math::
        i \text{ noisy} \iff P(\text{high} \mid s_i) > t, \qquad
        s_i = \frac{\ell_i - \min \ell}{\max \ell - \min \ell}, \quad
        s \sim \sum_{m \in \{\text{low}, \text{high}\}} \pi_m\, N(\mu_m, \sigma_m^2)

    A network learns clean labels before it learns wrong ones, so early in training the losses have two modes. The
    mixture is fitted by scikit-learn to the losses of the whole training set, once an epoch; split over ranks, gather
    the losses first, and all ranks find the same rows.

    Args:
        threshold: t, in [0, 1).

    Raises:
        ValueError: ``threshold`` outside [0, 1), losses that are not ``(N,)`` or hold NaN.

    Use it after a short warm-up, with losses taken of all rows without gradients. Where losses have one mode, all
    labels clean or all learned by heart, it still splits them in two; infinite losses count as the largest finite one,
    and losses that are all the same as clean.

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
        """How likely each row is noisy."""
        return probability_of_high("losses", losses)

    def __call__(self, losses: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Which rows are noisy."""
        return self.probability(losses) > self.threshold
