"""Symmetric cross-entropy: cross-entropy and its reverse together."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lossworks.checks import check_between, check_positive
from lossworks.roles import Loss, SoftmaxForm


class SymmetricCrossEntropyLoss(Loss):
    r"""Symmetric cross-entropy: cross-entropy to learn, plus reverse cross-entropy to withstand wrong labels.

    .. math::
        \ell(z, y) = -\alpha \log p_y - \beta \sum_k p_k \max(\log [k = y], A) = -\alpha \log p_y - \beta A (1 - p_y),
        \qquad p = \mathrm{softmax}(z)

    The reverse term swaps label and prediction in the cross-entropy, with :math:`A` in place of :math:`\log 0`.

    Args:
        alpha: The weight of the cross-entropy, >= 0.
        beta: The weight of the reverse cross-entropy, >= 0.
        log_clip: A, the number in place of log 0, in [-1e4, 0). The authors' paper uses -4; their code clips labels at
            1e-4, which gives -9.21.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``alpha < 0``, ``beta < 0``, ``log_clip`` outside [-1e4, 0), shapes that don't match, a class
            outside ``[0, C)``.

    Use it when labels are noisy; raise ``alpha`` with the number of classes (the authors take 0.1 for 10, 6 for 100).
    With clean labels cross-entropy is enough.

    Papers: wang2019sce

    >>> SymmetricCrossEntropyLoss(alpha=0.0)(torch.zeros(1, 4), torch.tensor([2]))
    tensor(3.)
    """

    papers = ("wang2019sce",)
    helps = ("noisy labels",)
    rowwise = True
    settings = ({"alpha": 0.1, "beta": 1.0}, {"alpha": 1.0, "beta": 1.0}, {"alpha": 6.0, "beta": 0.1})

    def __init__(
        self,
        alpha: float | Tensor = 0.1,
        beta: float | Tensor = 1.0,
        log_clip: float | Tensor = -4.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.alpha = check_positive("alpha", alpha, allow_zero=True)
        self.beta = check_positive("beta", beta, allow_zero=True)
        self.log_clip = check_between("log_clip", log_clip, -1e4, 0, open_high=True)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return self.of_surprise(F.cross_entropy(output, target, reduction="none"))

    def of_surprise(self, surprise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its cross-entropy."""
        return self.alpha * surprise + self.beta * self.log_clip * torch.expm1(-surprise)

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise)
