"""PolyLoss: cross-entropy with the leading term of its expansion made larger or smaller."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_between
from lossworks.losses._rows import soft_cross_entropy
from lossworks.roles import Loss, SoftmaxForm


class PolyLoss(Loss):
    r"""PolyLoss (Poly-1): cross-entropy whose first polynomial term, the one that never vanishes, is reweighted.

    .. math::
        \ell(z, y) = -\log p_y + \varepsilon\,(1 - p_y)
                   = (1 + \varepsilon)(1 - p_y) + \sum_{j \ge 2} \tfrac1j (1 - p_y)^j,
        \qquad p = \mathrm{softmax}(z)

    With class probabilities :math:`t` as target it is :math:`-\sum_k t_k \log p_k + \varepsilon (1 - \sum_k t_k p_k)`.

    Args:
        epsilon: The number added to the first term's weight, >= -1; 0 is cross-entropy, -1 removes the first term.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          class probabilities in the output's shape.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``.

    Raises:
        ValueError: ``epsilon < -1``, shapes that don't match, a class outside ``[0, C)``.

    Use it to tune cross-entropy by one hyperparameter: raise it to learn more from the bulk of the rows, lower it where
    common classes are overfitted. Not where the softmax must be a probability: positive values make it overconfident.

    Papers: leng2022poly

    >>> loss = PolyLoss(epsilon=1.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(1.1931)
    """

    papers = ("leng2022poly",)
    helps = ("overfitting", "imbalance")
    rowwise = True
    soft_targets = True
    settings = ({"epsilon": 1.0}, {"epsilon": 4.0}, {"epsilon": -1.0})

    def __init__(self, epsilon: float | Tensor = 1.0, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.epsilon = check_between("epsilon", epsilon, -1, math.inf, open_high=True)

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if target.is_floating_point():
            surprise = soft_cross_entropy(output, target)
            return surprise + self.epsilon * (1 - (target * output.softmax(dim=1)).sum(dim=1))
        return self.of_surprise(cross_entropy(output, target, reduction="none"))

    def of_surprise(self, surprise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its cross-entropy."""
        return surprise - self.epsilon * torch.expm1(-surprise)

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise)
