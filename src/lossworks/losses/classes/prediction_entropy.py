"""Cross-entropy plus a price on the entropy of the prediction."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lossworks.checks import check_positive
from lossworks.losses._rows import with_entropy
from lossworks.roles import Loss, RowForm

__all__ = ["PredictionEntropyLoss"]


class PredictionEntropyLoss(Loss):
    r"""Cross-entropy plus the entropy of the prediction, which widens the gap between the two highest logits.

    .. math::
        \ell(z, y) = -\sum_k t_k \log p_k + \lambda H(p), \qquad H(p) = -\sum_k p_k \log p_k, \qquad
        p = \mathrm{softmax}(z)

    The smallest change of the input that alters the predicted class is about as large as this gap divided by its slope,
    see :func:`lossworks.diagnose.linear_adversarial_radius`. A confidence penalty has the opposite sign. It is a loss
    and not a penalty, because it reads each row's logits, which a penalty on the model does not see.

    Args:
        lam: :math:`\lambda`, the price of a nat of entropy, >= 0; usually about 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          class probabilities in the output's shape.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``; the entropy's part
          lies in :math:`[0, \lambda \log C]`.

    Raises:
        ValueError: ``lam < 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it for some robustness against small changes of the input at little cost; training on attacks gives far more.
    Not when probabilities are wanted, because it makes them overconfident, nor with noisy labels, because it becomes
    certain of the wrong ones.

    Papers: cubuk2017intriguing

    >>> import torch
    >>> loss = PredictionEntropyLoss(lam=1.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # log 2 for the label, log 2 for the entropy
    tensor(1.3863)
    """

    papers = ("cubuk2017intriguing",)
    helps = ("attacks",)
    rowwise = True
    soft_targets = True
    settings = ({}, {"lam": 0.5}, {"lam": 2.0})

    def __init__(self, lam: float | Tensor = 1.0, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.lam = check_positive("lam", lam, allow_zero=True)

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        log_p = output.log_softmax(dim=1)
        finite = log_p.clamp(min=-1e4)  # below -1e4, p is 0 in every dtype, and 0 times -inf would be NaN
        entropy = -(log_p.exp() * finite).sum(dim=1)
        if target.is_floating_point():
            own = (target * torch.where(target == 0, finite, log_p)).sum(dim=1)
        else:
            own = log_p.gather(1, target[:, None]).squeeze(1)
        return self.lam * entropy - own

    def closed_form(self, num_classes: int) -> RowForm:
        """See :class:`lossworks.roles.RowForm`."""
        return RowForm(lambda output, target: with_entropy(output, target, self.lam))
