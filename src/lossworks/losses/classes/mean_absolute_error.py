"""Mean absolute error between the label and the predicted probabilities."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from lossworks.roles import Loss, SoftmaxForm


class MeanAbsoluteErrorLoss(Loss):
    r"""Mean absolute error on probabilities: symmetric over the labels, and so robust to uniform label noise.

    .. math::
        \ell(z, y) = \sum_k |[k = y] - p_k| = 2\,(1 - p_y), \qquad p = \mathrm{softmax}(z)

    Its values for all labels of a row sum to :math:`2(C - 1)` whatever the logits, so noise that flips labels uniformly
    changes its risk only by a factor and a constant.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          probabilities in the output's shape.
        - returns ``()``, or the target's shape with ``reduction="none"``; in [0, 2].

    Raises:
        ValueError: shapes that don't match, a class outside ``[0, C)``.

    Use it when there are few classes and more than a third of the labels are wrong. With many classes its gradient
    vanishes where the label is improbable and it hardly learns; take a generalized cross-entropy or an active-passive
    loss there.

    Papers: ghosh2017robust

    >>> MeanAbsoluteErrorLoss()(torch.zeros(1, 4), torch.tensor([2]))
    tensor(1.5000)
    """

    papers = ("ghosh2017robust",)
    helps = ("noisy labels",)
    rowwise = True
    soft_targets = True

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if target.is_floating_point():
            return (target - output.softmax(dim=1)).abs().sum(dim=1)
        return -2 * torch.expm1(-F.cross_entropy(output, target, reduction="none"))

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(lambda surprise: -2 * torch.expm1(-surprise))
