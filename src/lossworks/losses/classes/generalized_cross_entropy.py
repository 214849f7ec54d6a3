"""Generalized cross-entropy: between cross-entropy and mean absolute error."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lossworks.checks import check_between
from lossworks.roles import Loss, SoftmaxForm


class GeneralizedCrossEntropyLoss(Loss):
    r"""Generalized cross-entropy: one exponent leads from cross-entropy to the noise-robust mean absolute error.

    .. math::
        \ell(z, y) = \frac{1 - p_y^q}{q}, \qquad p = \mathrm{softmax}(z)

    ``q -> 0`` is cross-entropy, ``q = 1`` is :math:`1 - p_y`, half the mean absolute error.

    Args:
        q: The exponent, in (0, 1]; the larger, the less wrong labels count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; in [0, 1/q].

    Raises:
        ValueError: ``q`` outside (0, 1], shapes that don't match, a class outside ``[0, C)``.

    Use it when some of the labels are wrong and you want a single hyperparameter; with clean labels cross-entropy
    learns faster.

    Papers: zhang2018gce

    >>> GeneralizedCrossEntropyLoss(q=1.0)(torch.zeros(1, 4), torch.tensor([2]))
    tensor(0.7500)
    """

    papers = ("zhang2018gce",)
    helps = ("noisy labels",)
    rowwise = True
    settings = ({"q": 0.7}, {"q": 0.4}, {"q": 0.9})

    def __init__(self, q: float | Tensor = 0.7, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.q = check_between("q", q, 0, 1, open_low=True)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return _box_cox(F.cross_entropy(output, target, reduction="none"), self.q)

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(lambda surprise: _box_cox(surprise, self.q))


class TruncatedGeneralizedCrossEntropyLoss(Loss):
    r"""Truncated generalized cross-entropy: rows whose label the model finds improbable get no gradient.

    .. math::
        \ell(z, y) = \begin{cases} (1 - k^q) / q & p_y \le k \\ (1 - p_y^q) / q & \text{else} \end{cases}

    A row with :math:`p_y \le k` has a constant loss and no gradient. In an untrained model that is every row if
    :math:`k \ge 1/C`, so truncation begins only when the progress told to :meth:`set_progress` reaches ``warmup``. If
    :meth:`set_progress` is never called, the loss truncates from the start.

    The paper prunes rows instead: after 40 of 120 epochs, and then every 10, the best model so far decides which rows
    have :math:`p_y \le k`, and those are left out until the next round. Here each step decides anew with the current
    model, which needs no memory of rows. A row counts again as soon as training on the others lifts its :math:`p_y`
    above k.

    Args:
        q: The exponent, in (0, 1]; the larger, the less wrong labels count.
        k: A label whose probability is at most this is taken for wrong, in (0, 1).
        warmup: The fraction of the training before truncation begins, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; in :math:`[0, (1 - k^q)/q]` once truncated.
        - buffer ``progress``: ``()``, the fraction last told to :meth:`set_progress`, 1 before the first call.

    Raises:
        ValueError: ``q``, ``k`` or ``warmup`` outside its range, shapes that don't match, a class outside ``[0, C)``.

    Use it when many labels are wrong and training can start without truncation; not where hard rows are correctly
    labelled, for they are dropped as well.

    Papers: zhang2018gce

    >>> TruncatedGeneralizedCrossEntropyLoss(q=1.0, k=0.5)(torch.zeros(1, 4), torch.tensor([2]))
    tensor(0.5000)
    """

    papers = ("zhang2018gce",)
    helps = ("noisy labels",)
    rowwise = True
    settings = ({"q": 0.7, "k": 0.5}, {"q": 0.7, "k": 0.1})
    progress: Tensor

    def __init__(
        self,
        q: float | Tensor = 0.7,
        k: float | Tensor = 0.5,
        warmup: float | Tensor = 1 / 3,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.q = check_between("q", q, 0, 1, open_low=True)
        self.k = check_between("k", k, 0, 1, open_low=True, open_high=True)
        self.warmup = check_between("warmup", warmup, 0, 1)
        self.progress = torch.ones(())

    def set_progress(self, fraction: float) -> None:
        """Tell the loss the fraction of the training that is done; truncation begins at ``warmup``."""
        self.progress = torch.full_like(self.progress, check_between("fraction", fraction, 0, 1))

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return self.of_surprise(F.cross_entropy(output, target, reduction="none"))

    def of_surprise(self, surprise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its cross-entropy."""
        k = torch.as_tensor(self.k, dtype=surprise.dtype, device=surprise.device)
        limit = torch.where(self.progress < self.warmup, math.inf, -k.log())
        return _box_cox(torch.minimum(surprise, limit), self.q)

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise)


def _box_cox(cross_entropy: Tensor, q: float | Tensor) -> Tensor:
    return -torch.expm1(-q * cross_entropy) / q
