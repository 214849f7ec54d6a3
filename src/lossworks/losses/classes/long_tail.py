"""Losses for long-tailed classes: they know how many rows each class has, and give rare classes an advantage."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_amounts, check_finite, check_positive, precise
from lossworks.losses._rows import from_the_top
from lossworks.roles import Loss, SoftmaxForm


class _LongTailLoss(Loss):
    needs = ("class_counts",)
    rowwise = True

    def __init__(self, class_counts: Float[Tensor, " classes"], *, reduction: str, ignore_index: int) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        check_amounts("class_counts", class_counts, "C", least=2)
        self.class_counts = class_counts

    def _counts(self, num_classes: int) -> Float[Tensor, " classes"]:
        """The counts; a class without rows gets the count of the rarest class with rows.

        Their dtype is the most precise one: what is computed from them is rounded only where it is used, so that
        every form of the loss rounds alike.
        """
        if num_classes != len(self.class_counts):
            raise ValueError(
                f"output must have {len(self.class_counts)} classes, as class_counts has, got {num_classes}"
            )
        counts = self.class_counts.to(precise(self.class_counts.device))
        return torch.maximum(counts, torch.where(counts > 0, counts, math.inf).amin())


class LDAMLoss(_LongTailLoss):
    r"""Label-distribution-aware margin (LDAM): the rarer the class, the larger the margin by which its logit must win.

    .. math::
        \ell(z, y) = -\log \frac{e^{s (z_y - m_y)}}{e^{s (z_y - m_y)} + \sum_{k \ne y} e^{s z_k}}, \qquad
        m_k = m_{\max} \left(\frac{\min_j n_j}{n_k}\right)^{1/4}

    A class without rows has the margin of the rarest class with rows.

    Args:
        class_counts: ``(C,)`` :math:`n_k`, rows of each class in the training data (or their shares). A buffer
            that is never cast to half precision.
        max_margin: The rarest class's margin, in units of ``output``, >= 0.
        scale: The factor s on the logits, > 0. The authors use 30 on cosines (normalised features and weights); for the
            plain logits that most models give the default is 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: counts that are negative, all zero or not one a class, ``max_margin < 0``, ``scale <= 0``, shapes
            that don't match, a class outside ``[0, C)``.

    Use it when the classes can be separated and rare ones are overfitted. The authors add class weights late in
    training; a ``Weighting`` does that. Not where outputs must be probabilities.

    Papers: cao2019ldam

    >>> loss = LDAMLoss(torch.tensor([160.0, 10.0]), max_margin=1.0, reduction="none")
    >>> loss(torch.tensor([[0.5, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor([0.6931, 0.6931])
    """

    papers = ("cao2019ldam",)
    helps = ("imbalance", "margins")
    settings = ({"max_margin": 0.5}, {"max_margin": 2.0})

    def __init__(
        self,
        class_counts: Float[Tensor, " classes"],
        max_margin: float | Tensor = 0.5,
        scale: float | Tensor = 1.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(class_counts, reduction=reduction, ignore_index=ignore_index)
        self.max_margin = check_positive("max_margin", max_margin, allow_zero=True)
        self.scale = check_positive("scale", scale)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        margins = self._margins(output.shape[1]).to(output.dtype)
        behind = from_the_top(output).scatter_add(1, target[:, None], -margins[target][:, None])
        plain = not isinstance(self.scale, Tensor) and self.scale == 1
        return cross_entropy(behind if plain else self.scale * behind, target, reduction="none")

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(lambda own: own, scale=self.scale, handicap=-self.scale * self._margins(num_classes))

    def _margins(self, num_classes: int) -> Float[Tensor, " classes"]:
        counts = self._counts(num_classes)
        return self.max_margin * (counts.amin() / counts) ** 0.25

    def predict(self, output: Tensor) -> Tensor:
        """The softmax of the scaled outputs, without margins."""
        return (self.scale * output).softmax(dim=-1)


class LogitAdjustedLoss(_LongTailLoss):
    r"""Logit-adjusted cross-entropy: takes the class frequencies out of the logits, so that all classes count alike.

    .. math::
        \ell(z, y) = -\log \mathrm{softmax}(z + \tau \log \pi)_y, \qquad \pi_k = n_k / \textstyle\sum_j n_j

    :meth:`predict` is the softmax of the logits without the adjustment. At ``tau=1`` these are the probabilities as
    they would be if all classes were equally frequent, and the largest is the best answer for balanced accuracy. The
    softmax of :math:`z + \tau \log \pi` gives the probabilities at the training data's frequencies. A class without
    rows gets the count of the rarest class with rows.

    Args:
        class_counts: ``(C,)`` :math:`n_k`, rows of each class in the training data (or their shares). A buffer
            that is never cast to half precision.
        tau: How much of the frequencies is taken out, any finite number; 0 is cross-entropy, 1 serves balanced
            accuracy.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: counts that are negative, all zero or not one a class, ``tau`` not finite, shapes that don't
            match, a class outside ``[0, C)``.

    Use it when all classes count alike and some are rare; not when plain accuracy on data like the training data is
    wanted.

    Papers: menon2021logitadjustment

    >>> loss = LogitAdjustedLoss(torch.tensor([30.0, 10.0]), reduction="none")
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1])).exp()
    tensor([1.3333, 4.0000])
    """

    papers = ("menon2021logitadjustment",)
    helps = ("imbalance",)
    settings = ({"tau": 1.0}, {"tau": 0.5}, {"tau": 1.5})

    def __init__(
        self,
        class_counts: Float[Tensor, " classes"],
        tau: float | Tensor = 1.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(class_counts, reduction=reduction, ignore_index=ignore_index)
        self.tau = check_finite("tau", tau)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return cross_entropy(
            from_the_top(output) + self._shift(output.shape[1]).to(output.dtype), target, reduction="none"
        )

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(lambda own: own, shift=self._shift(num_classes))

    def _shift(self, num_classes: int) -> Float[Tensor, " classes"]:
        counts = self._counts(num_classes)
        return self.tau * (counts / counts.sum()).log()


class BalancedSoftmaxLoss(_LongTailLoss):
    r"""Balanced softmax: cross-entropy in which each class's exponential is multiplied by the class's row count.

    .. math::
        \ell(z, y) = -\log \frac{n_y e^{z_y}}{\sum_k n_k e^{z_k}}

    It equals :class:`LogitAdjustedLoss` at ``tau=1``, :meth:`predict` included, and was found independently.

    Args:
        class_counts: ``(C,)`` :math:`n_k`, rows of each class in the training data (or their shares). A buffer
            that is never cast to half precision.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: counts that are negative, all zero or not one a class, shapes that don't match, a class outside
            ``[0, C)``.

    Use it where :class:`LogitAdjustedLoss` would be used and ``tau`` need not be tuned.

    Papers: ren2020balancedsoftmax

    >>> loss = BalancedSoftmaxLoss(torch.tensor([30.0, 10.0]), reduction="none")
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1])).exp()
    tensor([1.3333, 4.0000])
    """

    papers = ("ren2020balancedsoftmax",)
    helps = ("imbalance",)

    def __init__(
        self, class_counts: Float[Tensor, " classes"], *, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__(class_counts, reduction=reduction, ignore_index=ignore_index)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return cross_entropy(
            from_the_top(output) + self._counts(output.shape[1]).log().to(output.dtype), target, reduction="none"
        )

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(lambda own: own, shift=self._counts(num_classes).log())
