"""The Brier score as a loss."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lossworks.roles import Loss, RowForm


class BrierLoss(Loss):
    r"""Brier score: the squared distance between the predicted and the true class probabilities.

    .. math::
        \ell(z, y) = \sum_k (p_k - t_k)^2, \qquad p = \mathrm{softmax}(z), \qquad t_k = [k = y]

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          class probabilities in the output's shape.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``; in [0, 2].

    Raises:
        ValueError: shapes that don't match, a class outside ``[0, C)``.

    Use it when well-calibrated probabilities are wanted and the loss of a single row, such as one with a wrong label,
    must be bounded; not with very many classes from a random start, where its gradient is small.

    Papers: brier1950verification

    >>> loss = BrierLoss()
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.5000)
    """

    papers = ("brier1950verification",)
    helps = ("calibration", "noisy labels")
    rowwise = True
    soft_targets = True
    probabilistic = True

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        probability = output.softmax(dim=1)
        if target.is_floating_point():
            gap = probability - target
        else:
            label = target[:, None]
            gap = probability.scatter_add(1, label, -torch.ones_like(label, dtype=output.dtype))
        # The norm's second derivative is NaN where a row is right to the last digit.
        return gap.square().sum(dim=1)

    def closed_form(self, num_classes: int) -> RowForm:
        """See :class:`lossworks.roles.RowForm`."""
        return RowForm(_value_and_gradient)


def _value_and_gradient(
    output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
    label = target[:, None]
    gap = output.softmax(dim=1)
    own = gap.gather(1, label)
    missing = own - 1
    gap.scatter_(1, label, missing)
    value = torch.linalg.vecdot(gap, gap)[:, None]
    common = -2 * (value + missing)  # the mean gap under the prediction, as the gap is the prediction but at the label
    gradient = torch.add(common, gap, alpha=2).mul_(gap)
    return value[:, 0], gradient.scatter_(1, label, (2 * missing + common) * own)
