"""Bayesian personalised ranking."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lossworks.roles import Loss

__all__ = ["BPRLoss"]


class BPRLoss(Loss):
    r"""What a user took is ranked above what the user did not.

    .. math::
        \ell(s^+, s^-) = \log\big(1 + e^{s^- - s^+}\big)

    The logistic loss of the difference: only that is learned, a constant on all of a user's scores changes nothing. The
    gradient reaches both scores, with opposite signs.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: scores of items that were taken, ``(n, ...)``; target: scores of others for the same users, in the
          same shape, floating-point.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: shapes that don't match.
        TypeError: scores that aren't floating-point.

    Use it for recommendation from what people did, clicks and purchases, with others drawn at random: one for each row
    and step. It trusts what was taken: where that is noisy, draw by :class:`lossworks.select.PersonalLossResampler`.
    There is no score to compare a label with, so it has no place on a table.

    Papers: rendle2009bpr, zhang2025pld

    >>> import torch
    >>> BPRLoss()(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    tensor(0.6931)
    """

    kind = "pairs"
    papers = ("rendle2009bpr", "zhang2025pld")

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each pair."""
        return F.softplus(target - output)
