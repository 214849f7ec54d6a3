"""Consistent predictions for the noisy copies of a row, for a classifier that will be smoothed."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_classes, check_floating, check_positive, check_tensor, wide
from lossworks.losses._rows import with_entropy
from lossworks.roles import Loss, RowForm, check_no_nan, cleared

__all__ = ["SmoothingConsistencyLoss"]


class SmoothingConsistencyLoss(Loss):
    r"""Cross-entropy over a row's noisy copies, plus a price on their disagreement and on the entropy of their mean.

    .. math::
        \ell = \frac1m \sum_j -\log p_j(y) + \frac{\lambda}{m} \sum_j \mathrm{KL}(\bar p \,\|\, p_j) + \eta H(\bar p),
        \qquad p_j = \mathrm{softmax}(z_j), \quad \bar p = \frac1m \sum_j p_j

    The more the noisy copies of a row agree, the larger the radius that a smoothed classifier is certified for. The
    divergence is 0 exactly where all copies agree; the entropy then favours a single class. A row with a single copy
    has no divergence, and its loss is :math:`-\log p(y) + \eta H(p)`.

    Args:
        lam: :math:`\lambda`, the price of a nat of disagreement, >= 0; the larger the noise, the larger it may be. If
            it is too large, the model learns one answer for every row: raise it in the course of training.
        eta: :math:`\eta`, the price of a nat of entropy, >= 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits of m copies, ``(n, m, C)`` with a target ``(n,)``, or of one copy, ``(n, C)`` or
          ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: ``lam < 0``, ``eta < 0``, shapes that don't match, no copies, a class outside ``[0, C)``.

    Use it with :class:`lossworks.objectives.NoiseConsistencyObjective`, which makes the copies, to train a model for
    :class:`lossworks.certify.RandomizedSmoothing`. It trades some accuracy for larger radii, and without noise it only
    makes the model overconfident.

    Papers: jeong2020consistency, lei2025rrcm

    >>> loss = SmoothingConsistencyLoss(lam=1.0, eta=0.0)
    >>> logits = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    >>> loss(logits, torch.tensor([0])) > loss(0 * logits, torch.tensor([0]))
    tensor(True)
    """

    papers = ("jeong2020consistency", "lei2025rrcm")
    helps = ("attacks",)
    beside = "noisy copies of every row"
    rowwise = True
    settings = ({}, {"lam": 2.0}, {"lam": 10.0, "eta": 0.1})

    def __init__(
        self,
        lam: float | Tensor = 5.0,
        eta: float | Tensor = 0.5,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.lam = check_positive("lam", lam, allow_zero=True)
        self.eta = check_positive("eta", eta, allow_zero=True)

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The loss of each row over all its copies, and which rows are kept."""
        check_floating("output", output)
        check_tensor("target", target)
        if output.ndim != 3 or target.ndim != 1:
            return super().rows(output, target, index)
        if not output.shape[1]:
            raise ValueError(f"output must have shape (n, m, C) with m >= 1, got {tuple(output.shape)}")
        check_classes(output[:, 0], target, ignore_index=self.ignore_index)
        output = wide(output)
        kept = target != self.ignore_index
        output = cleared(output, ~kept)
        losses = self._of_copies(output, torch.where(kept, target, 0))
        losses = torch.where(kept, losses, torch.zeros_like(losses))
        check_no_nan(output, losses)
        return losses, kept

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of rows that come as one copy each."""
        log_p = output.log_softmax(dim=1)
        finite = log_p.clamp(min=-1e4)  # below -1e4, p is 0 in every dtype, and 0 times -inf would be NaN
        entropy = -(log_p.exp() * finite).sum(dim=1)
        return self.eta * entropy - log_p.gather(1, target[:, None]).squeeze(1)

    def closed_form(self, num_classes: int) -> RowForm:
        """See :class:`lossworks.roles.RowForm`: a single copy of a row has no disagreement."""
        return RowForm(lambda output, target: with_entropy(output, target, self.eta))

    def _of_copies(self, output: Float[Tensor, "n m classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        log_p = output.log_softmax(dim=2)
        own = -log_p.mean(dim=1).gather(1, target[:, None])[:, 0]
        # A class with probability 0 in all copies must add 0 to the sums, as log-probability 0 in all copies does.
        log_p = log_p.masked_fill((log_p == -math.inf).all(dim=1, keepdim=True), 0)
        mean_log_p = log_p.mean(dim=1)
        log_mean = log_p.logsumexp(dim=1) - math.log(output.shape[1])
        mean = log_mean.exp()
        divergence = (mean * (log_mean - mean_log_p)).sum(dim=1)
        entropy = -(mean * log_mean).sum(dim=1)
        return own + self.lam * divergence + self.eta * entropy
