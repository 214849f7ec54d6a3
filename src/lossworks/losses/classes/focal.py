"""Focal loss for classes."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_positive
from lossworks.losses._rows import present_surprises
from lossworks.roles import Loss, SoftmaxForm

_CERTAIN = 1e4  # a surprise at which the probability is 0 in every precision


class FocalLoss(Loss):
    r"""Focal loss: cross-entropy in which rows that are already right count less.

    .. math::
        \ell(z, y) = -\sum_k t_k\, (1 - p_k)^\gamma \log p_k, \qquad p = \mathrm{softmax}(z)

    with :math:`t_k = [k = y]` for a class target. Where the loss is minimal, the softmax is less confident than the
    true class probabilities :math:`\eta`. So :meth:`predict` computes these from it,

    .. math::
        \eta_k \propto \frac{p_k}{(1 - p_k)^\gamma - \gamma\, p_k (1 - p_k)^{\gamma - 1} \log p_k},

    which leaves the most probable class the same.

    Args:
        gamma: How strongly easy rows are down-weighted, >= 0; 0 is cross-entropy, the authors use 2.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          class probabilities in the output's shape.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``gamma < 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it when easy rows drown the hard ones. Not where labels are noisy: wrongly labelled rows are the hardest.

    Papers: lin2017focal, charoenphakdee2021focal

    >>> loss = FocalLoss(gamma=2.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.1733)
    """

    papers = ("lin2017focal", "charoenphakdee2021focal")
    helps = ("hard examples", "imbalance", "calibration")
    rowwise = True
    soft_targets = True
    probabilistic = True
    settings = ({"gamma": 2.0}, {"gamma": 1.0}, {"gamma": 0.5})

    def __init__(self, gamma: float | Tensor = 2.0, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.gamma = check_positive("gamma", gamma, allow_zero=True)

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if target.is_floating_point():
            surprise = present_surprises(output, target)
            return (target * _others(surprise) ** self.gamma * surprise).sum(dim=1)
        return self.of_surprise(cross_entropy(output, target, reduction="none"))

    def of_surprise(self, surprise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its cross-entropy."""
        return _others(surprise) ** self.gamma * surprise

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise)

    def predict(self, output: Tensor) -> Tensor:
        """The class probabilities for which these outputs minimise the loss."""
        surprise = -output.log_softmax(dim=-1)
        others = _others(surprise)
        slope = torch.log1p(self.gamma * torch.exp(-surprise) * surprise.clamp_max(_CERTAIN) / others)
        return (-surprise - self.gamma * others.log() - slope).softmax(dim=-1)


def _others(surprise: Tensor) -> Tensor:
    """``1 - p`` from ``-log p``, kept above 0 so that powers of it below 1 have a finite derivative.

    It is constant where p is 0 in every precision, so that an infinite surprise is not multiplied by a slope of 0.
    """
    return -torch.expm1(-surprise.clamp_max(_CERTAIN)).clamp_max(-torch.finfo(surprise.dtype).tiny)
