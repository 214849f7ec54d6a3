"""Hinge losses for classes: the label must win by a margin, over all other classes or over the strongest one."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_positive
from lossworks.roles import Loss


class _MulticlassHingeLoss(Loss):
    helps = ("margins",)
    rowwise = True

    def __init__(self, margin: float | Tensor = 1.0, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.margin = check_positive("margin", margin, allow_zero=True)


class WestonWatkinsLoss(_MulticlassHingeLoss):
    r"""Weston-Watkins hinge loss: every other class that scores within the margin of the label adds to the loss.

    .. math::
        \ell(z, y) = \sum_{k \ne y} \max(0,\; m + z_k - z_y)

    ``torch.nn.functional.multi_margin_loss`` divides this by C.

    Args:
        margin: By how much the label's score should exceed the others, in logit units, >= 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: scores ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``margin < 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it for large margins when classes hardly overlap; not where outputs must be probabilities.

    Papers: weston1999multiclass

    >>> loss = WestonWatkinsLoss()
    >>> loss(torch.tensor([[1.0, 0.5, 1.0]]), torch.tensor([0]))
    tensor(1.5000)
    """

    papers = ("weston1999multiclass",)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        label = target[:, None]
        behind = self.margin - output.gather(1, label)
        return (output + behind).scatter(1, label, 0.0).relu().sum(dim=1)


class CrammerSingerLoss(_MulticlassHingeLoss):
    r"""Crammer-Singer hinge loss: counts only the strongest other class, if it is within the margin of the label.

    .. math::
        \ell(z, y) = \max(0,\; m + \max_{k \ne y} z_k - z_y)

    Args:
        margin: By how much the label's score should exceed the others, in logit units, >= 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: scores ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``margin < 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it for large margins when the best class holds more than half of the probability in most places; elsewhere its
    minimiser need not predict the most probable class. Not where outputs must be probabilities.

    Papers: crammer2001multiclass

    >>> loss = CrammerSingerLoss()
    >>> loss(torch.tensor([[1.0, 0.5, 1.0]]), torch.tensor([0]))
    tensor(1.)
    """

    papers = ("crammer2001multiclass",)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        label = target[:, None]
        rival = output.detach().scatter(1, label, -math.inf).argmax(dim=1, keepdim=True)
        scores = output.gather(1, torch.cat([rival, label], dim=1))
        return (scores[:, 0] - scores[:, 1] + self.margin).relu()
