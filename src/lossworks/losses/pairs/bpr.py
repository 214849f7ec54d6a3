"""Bayesian personalised ranking (BPR), a loss on pairs of scores."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lossworks.roles import PAIRS, Loss

__all__ = ["BPRLoss"]


class BPRLoss(Loss):
    r"""Bayesian personalised ranking (BPR): items that a user took should score above items that the user did not take.

    .. math::
        \ell(s^+, s^-) = \log\big(1 + e^{s^- - s^+}\big)

    It is the logistic loss of the difference of the two scores, so adding a constant to all of a user's scores changes
    nothing. The gradient reaches both scores, with opposite signs.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: scores of items that were taken, ``(n, ...)``; target: scores of items that the same users did not
          take, in the same shape, floating-point.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: shapes that don't match.
        TypeError: scores that aren't floating-point.

    Use it for recommendation from clicks, purchases and the like. At every step, draw for each row a new random item
    that the user did not take. The loss trusts every item that was taken; where some were taken by mistake, draw with
    :class:`lossworks.select.PersonalLossResampler`. It compares two scores and has no label, so it cannot be used on a
    table.

    Papers: rendle2009bpr, zhang2025pld

    >>> import torch
    >>> BPRLoss()(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    tensor(0.6931)
    """

    kind = PAIRS
    papers = ("rendle2009bpr", "zhang2025pld")

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each pair."""
        return F.softplus(target - output)
