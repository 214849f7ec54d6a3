r"""Margin losses for two classes: functions of :math:`m = \pm z`, the score on the label's side."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lossworks.checks import check_between, check_positive
from lossworks.roles import BINARY, Loss


class _BinaryLoss(Loss):
    kind = BINARY
    rowwise = True


class LogisticLoss(_BinaryLoss):
    r"""The logistic loss: cross-entropy for two classes, on one score a row.

    .. math::
        \ell(z, y) = \log(1 + e^{-m}), \qquad m = (2y - 1)\,z

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: scores ``(n, ...)``; target: 0 or 1 in the same shape.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: shapes that don't match, a target that isn't 0 or 1.

    Use it first: the sigmoid of its score estimates the probability of class 1. Not when there are wrong labels far
    from the decision boundary: the loss of such a row grows with its distance, without a bound.

    Papers: cox1958logistic

    >>> LogisticLoss()(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor(0.6931)
    """

    papers = ("cox1958logistic",)
    helps = ("baseline",)
    probabilistic = True

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return F.binary_cross_entropy_with_logits(output, target, reduction="none")


class _HingedLoss(_BinaryLoss):
    def __init__(self, margin: float | Tensor = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = check_positive("margin", margin)

    def shortfall(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """By how much each row misses the margin."""
        return (self.margin - _signed(output, target)).relu()


class HingeLoss(_HingedLoss):
    r"""The hinge loss of support-vector machines: zero for a row that is right by at least the margin.

    .. math::
        \ell(z, y) = \max(0,\; \gamma - m), \qquad m = (2y - 1)\,z

    Args:
        margin: The margin :math:`\gamma`, in score units, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: scores ``(n, ...)``; target: 0 or 1 in the same shape.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``margin <= 0``, shapes that don't match, a target that isn't 0 or 1.

    Use it when only the decision matters, or when the gradient of a wrongly labelled row should not grow with its
    distance from the boundary. Not when probabilities are wanted.

    Papers: cortes1995svm

    >>> HingeLoss()(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]))
    tensor(0.2500)
    """

    papers = ("cortes1995svm",)
    helps = ("margins",)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return self.shortfall(output, target)


class SquaredHingeLoss(_HingedLoss):
    r"""The squared hinge loss: zero for a row that is right by at least the margin, with a continuous gradient.

    .. math::
        \ell(z, y) = \max(0,\; \gamma - m)^2, \qquad m = (2y - 1)\,z

    Args:
        margin: The margin :math:`\gamma`, in score units, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: scores ``(n, ...)``; target: 0 or 1 in the same shape.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``margin <= 0``, shapes that don't match, a target that isn't 0 or 1.

    Use it for a margin loss whose gradient is continuous. Not when labels are wrong: the gradient of such a row grows
    with its distance from the margin.

    Papers: tang2013svm

    >>> SquaredHingeLoss()(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]))
    tensor(0.1250)
    """

    papers = ("tang2013svm",)
    helps = ("margins",)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return self.shortfall(output, target).square()


class ExponentialLoss(_BinaryLoss):
    r"""The exponential loss of AdaBoost, made linear for rows that are wrong by more than a limit.

    .. math::
        \ell(z, y) = e^{-m} \;\text{for}\; m \ge -L, \qquad e^{L} (1 - m - L) \;\text{below}, \qquad m = (2y - 1)\,z

    Value and slope are continuous at :math:`m = -L`. The score that minimises it is half the log-odds, so
    :meth:`predict` is the sigmoid of twice the score.

    Args:
        limit: L: where the score is on the wrong side by more than this, the loss grows linearly; in score units, in
            (0, 40].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: scores ``(n, ...)``; target: 0 or 1 in the same shape.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``limit`` outside (0, 40], shapes that don't match, a target that isn't 0 or 1.

    Use it when the hard rows matter most. Not where labels are noisy: a single wrong label can outweigh all other rows.

    Papers: freund1997boosting, friedman2000additive

    >>> ExponentialLoss()(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.)
    """

    papers = ("freund1997boosting", "friedman2000additive")
    helps = ("hard examples",)
    settings = ({"limit": 20.0}, {"limit": 2.0})
    probabilistic = True

    def __init__(self, limit: float | Tensor = 20.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.limit = check_between("limit", limit, 0, 40, open_low=True)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        wrong = -_signed(output, target)
        curved = wrong.clamp(max=self.limit)
        return curved.exp() * (1 + wrong - curved)

    def predict(self, output: Tensor) -> Tensor:
        """The probability of class 1."""
        return (2 * output).sigmoid()


def _signed(output: Tensor, target: Tensor) -> Tensor:
    return torch.where(target > 0.5, output, -output)
