"""Jensen-Shannon loss: a divergence between label and prediction, from cross-entropy to absolute error."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_between
from lossworks.roles import Loss, SoftmaxForm


class JensenShannonLoss(Loss):
    r"""Jensen-Shannon loss: a scaled divergence between label and prediction, from cross-entropy to absolute error.

    .. math::
        \ell(z, y) = \frac{\pi\, \mathrm{KL}(e_y \,\|\, m) + (1 - \pi)\, \mathrm{KL}(p \,\|\, m)}
                          {-(1 - \pi) \log(1 - \pi)},
        \qquad m = \pi e_y + (1 - \pi) p, \quad p = \mathrm{softmax}(z)

    It depends on :math:`p_y` alone. As ``pi -> 0`` it becomes cross-entropy, as ``pi -> 1`` half the absolute error,
    :math:`1 - p_y`. In between it is bounded, and the larger ``pi``, the less it learns from rows that look wrongly
    labelled.

    Args:
        pi: The label's weight, in (0, 1). A small one fits fast, a large one is more robust to wrong labels.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``pi`` outside (0, 1), shapes that don't match, a class outside ``[0, C)``.

    Use it when labels are noisy; not with clean labels, nor with a large ``pi`` and many classes, where it learns
    slowly.

    Papers: englesson2021jensenshannon

    >>> loss = JensenShannonLoss(pi=0.5)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6226)
    """

    papers = ("englesson2021jensenshannon",)
    helps = ("noisy labels",)
    rowwise = True
    settings = ({"pi": 0.5}, {"pi": 0.1}, {"pi": 0.9})

    def __init__(self, pi: float | Tensor = 0.5, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.pi = check_between("pi", pi, 0, 1, open_low=True, open_high=True)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return self.of_surprise(cross_entropy(output, target, reduction="none"))

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise)

    def of_surprise(self, surprise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its cross-entropy."""
        pi = self.pi
        log_rest = torch.log1p(-pi) if isinstance(pi, Tensor) else math.log1p(-pi)
        own = torch.exp(-surprise)
        # log(m_y / p_y) keeps its digits at small pi; beyond 80 its product with p_y is 0 and float32 would overflow.
        log_ratio = torch.log1p(pi * torch.expm1(surprise.clamp_max(80)))
        coupled = pi * torch.log(pi + (1 - pi) * own) + (1 - pi) * own * log_ratio
        return coupled / ((1 - pi) * log_rest) - torch.expm1(-surprise)
