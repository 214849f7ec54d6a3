"""Active and passive losses, and their combination: robust to label noise without underfitting."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_between, check_choice, check_positive
from lossworks.losses._rows import surprise_and_total
from lossworks.roles import Loss, SoftmaxForm

LARGEST_LOG = 700.0  # the exponential of a larger number overflows float64


class _SurpriseLoss(Loss):
    """A loss of two numbers a row, so that two such losses can share one log-softmax."""

    rowwise = True
    normalizes: ClassVar[bool] = False
    """Whether it divides by the sum over all labels, which takes two of them."""

    def of_surprise(self, own: Float[Tensor, " n"], total: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its label's cross-entropy and the sum of the cross-entropies over all labels."""
        raise NotImplementedError(f"{type(self).__name__} must define of_surprise(own, total) -> (n,)")

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise, reads_total=True)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if self.normalizes:
            _check_two_classes(output)
        return self.of_surprise(*surprise_and_total(output, target))


class NormalizedCrossEntropyLoss(_SurpriseLoss):
    r"""Normalized cross-entropy: the label's cross-entropy over the sum for all labels; an *active* loss.

    .. math::
        \ell(z, y) = \frac{-\log p_y}{-\sum_k \log p_k}, \qquad p = \mathrm{softmax}(z)

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)`` with C >= 2; target: classes ``(n,)`` or ``(n, d1, ...)``,
          int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; in [0, 1]. A row's values for all C labels
          sum to 1, so the loss is bounded and symmetric.

    Raises:
        ValueError: one class, shapes that don't match, a class outside ``[0, C)``.

    Use it in an :class:`ActivePassiveLoss`; alone it withstands noise but underfits.

    Papers: ma2020normalized

    >>> NormalizedCrossEntropyLoss()(torch.zeros(1, 4), torch.tensor([2]))
    tensor(0.2500)
    """

    papers = ("ma2020normalized",)
    helps = ("noisy labels",)
    normalizes = True

    def of_surprise(self, own: Float[Tensor, " n"], total: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its label's cross-entropy and the sum of the cross-entropies over all labels."""
        lost = own.isinf()  # own and total grow alike, and the quotient's limit is 1
        return torch.where(lost, 1, own.masked_fill(lost, 0) / total.masked_fill(lost, 1))


class ReverseCrossEntropyLoss(_SurpriseLoss):
    r"""Reverse cross-entropy, with label and prediction swapped: a scaled absolute error, a *passive* loss.

    .. math::
        \ell(z, y) = -\sum_k p_k \max(\log [k = y], A) = -A\,(1 - p_y), \qquad p = \mathrm{softmax}(z)

    Args:
        log_clip: A, the number in place of log 0, in [-1e4, 0). Published code clips labels at 1e-4, which gives -9.21.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; in [0, -A].

    Raises:
        ValueError: ``log_clip`` outside [-1e4, 0), shapes that don't match, a class outside ``[0, C)``.

    Use it in an :class:`ActivePassiveLoss` or a symmetric cross-entropy; alone it withstands noise but underfits.

    Papers: wang2019sce, ma2020normalized

    >>> ReverseCrossEntropyLoss()(torch.zeros(1, 4), torch.tensor([2]))
    tensor(3.)
    """

    papers = ("wang2019sce", "ma2020normalized")
    helps = ("noisy labels",)

    def __init__(self, log_clip: float | Tensor = -4.0, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.log_clip = check_between("log_clip", log_clip, -1e4, 0, open_high=True)

    def of_surprise(self, own: Float[Tensor, " n"], total: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its label's cross-entropy and the sum of the cross-entropies over all labels."""
        return self.log_clip * torch.expm1(-own)


class AsymmetricUnhingedLoss(_SurpriseLoss):
    r"""Asymmetric unhinged loss: learns a row's most frequent label, however noise spreads over the others.

    .. math::
        \ell(z, y) = \frac{(a - p_y)^p - (a - 1)^p}{p}, \qquad p_y = \mathrm{softmax}(z)_y

    For ``p <= 1`` the risk under label noise has its minimum at the true label whenever that is the most frequent one
    (the loss is completely asymmetric). For ``p > 1`` the true label must be :math:`(a / (a - 1))^{p - 1}` times as
    frequent as the next.

    Args:
        a: The constant in the equation, > 1: how far the curve stays from its pole.
        p: The exponent, > 0; ``p = 1`` is half the mean absolute error.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``a <= 1``, ``p <= 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it when labels are noisy and classes are few; with many classes combine it with normalized cross-entropy.

    Papers: zhou2021asymmetric

    >>> AsymmetricUnhingedLoss(a=2.0, p=1.0)(torch.zeros(1, 4), torch.tensor([2]))
    tensor(0.7500)
    """

    papers = ("zhou2021asymmetric",)
    helps = ("noisy labels",)
    settings = ({"a": 1.5, "p": 0.9}, {"a": 5.5, "p": 3.0}, {"a": 3.0, "p": 0.1})

    def __init__(
        self, a: float | Tensor = 1.5, p: float | Tensor = 0.9, *, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.a = check_between("a", a, 1, math.inf, open_low=True, open_high=True)
        self.p = check_positive("p", p)
        if not isinstance(a, Tensor) and not isinstance(p, Tensor) and p * math.log(a - 1) > LARGEST_LOG:
            raise ValueError(f"p must be so small that (a - 1) ** p is finite, got {p:g} with a = {a:g}")

    def of_surprise(self, own: Float[Tensor, " n"], total: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its label's cross-entropy and the sum of the cross-entropies over all labels."""
        span = self.a - 1.0
        return span**self.p * torch.expm1(self.p * torch.log1p(-torch.expm1(-own) / span)) / self.p


class AsymmetricGeneralizedCrossEntropyLoss(_SurpriseLoss):
    r"""Asymmetric generalized cross-entropy: learns a row's most frequent label, however noise spreads over the others.

    .. math::
        \ell(z, y) = \frac{(a + 1)^q - (a + p_y)^q}{q}, \qquad p = \mathrm{softmax}(z)

    For ``q >= 1`` it is completely asymmetric (see :class:`AsymmetricUnhingedLoss`); for ``q < 1`` the true label must
    be :math:`((a + 1) / a)^{1 - q}` times as frequent as the next. ``a -> 0`` is the generalized cross-entropy.

    Args:
        a: The constant in the equation, > 0: how far the curve stays from its pole.
        q: The exponent, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``a <= 0``, ``q <= 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it when labels are noisy and classes are few; with many classes combine it with normalized cross-entropy.

    Papers: zhou2021asymmetric

    >>> AsymmetricGeneralizedCrossEntropyLoss(a=1.0, q=1.0)(torch.zeros(1, 4), torch.tensor([2]))
    tensor(0.7500)
    """

    papers = ("zhou2021asymmetric",)
    helps = ("noisy labels",)
    settings = ({"a": 1.0, "q": 2.0}, {"a": 0.6, "q": 0.6}, {"a": 4.0, "q": 0.2})

    def __init__(
        self, a: float | Tensor = 1.0, q: float | Tensor = 2.0, *, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.a = check_positive("a", a)
        self.q = check_positive("q", q)
        if not isinstance(a, Tensor) and not isinstance(q, Tensor) and q * math.log1p(a) > LARGEST_LOG:
            raise ValueError(f"q must be so small that (a + 1) ** q is finite, got {q:g} with a = {a:g}")

    def of_surprise(self, own: Float[Tensor, " n"], total: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its label's cross-entropy and the sum of the cross-entropies over all labels."""
        top = self.a + 1.0  # a float, because a power of whole numbers could exceed 64 bits
        return -(top**self.q) * torch.expm1(self.q * torch.log((self.a + torch.exp(-own)) / top)) / self.q


class ActivePassiveLoss(Loss):
    r"""Active-passive loss: a noise-robust loss that raises the label's probability plus one that lowers the others'.

    .. math::
        \ell(z, y) = \alpha\,\ell_{\text{active}}(z, y) + \beta\,\ell_{\text{passive}}(z, y)

    Args:
        active: The active loss, or the name of one: ``"nce"`` (:class:`NormalizedCrossEntropyLoss`), ``"rce"``
            (:class:`ReverseCrossEntropyLoss`), ``"aul"`` (:class:`AsymmetricUnhingedLoss`), ``"agce"``
            (:class:`AsymmetricGeneralizedCrossEntropyLoss`), each with its default hyperparameters.
        passive: The passive loss, in the same way.
        alpha: The weight of the active loss, >= 0.
        beta: The weight of the passive loss, >= 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the reductions of the two losses are not used.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)`` with C >= 2; target: classes ``(n,)`` or ``(n, d1, ...)``,
          int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: an unknown name, a loss that isn't for classes or doesn't read each row alone, ``alpha < 0``,
            ``beta < 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it when many labels are wrong; the authors weigh the active loss ten times more with 100 classes than with 10.

    Papers: ma2020normalized, zhou2021asymmetric

    >>> ActivePassiveLoss("nce", "rce", alpha=1.0, beta=0.1)(torch.zeros(1, 4), torch.tensor([2]))
    tensor(0.5500)
    """

    papers = ("ma2020normalized", "zhou2021asymmetric")
    helps = ("noisy labels",)
    rowwise = True
    settings = ({"alpha": 1.0, "beta": 1.0}, {"alpha": 10.0, "beta": 0.1}, {"passive": "agce"}, {"passive": "aul"})
    modes = ({"active": "rce"}, {"active": "aul", "passive": "nce"}, {"active": "agce"})
    names: ClassVar[Mapping[str, type[Loss]]] = {
        "nce": NormalizedCrossEntropyLoss,
        "rce": ReverseCrossEntropyLoss,
        "aul": AsymmetricUnhingedLoss,
        "agce": AsymmetricGeneralizedCrossEntropyLoss,
    }

    def __init__(
        self,
        active: str | Loss = "nce",
        passive: str | Loss = "rce",
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.active = self._loss("active", active)
        self.passive = self._loss("passive", passive)
        self.alpha = check_positive("alpha", alpha, allow_zero=True)
        self.beta = check_positive("beta", beta, allow_zero=True)

    def _loss(self, name: str, loss: str | Loss) -> Loss:
        if not isinstance(loss, Loss):
            return self.names[check_choice(name, loss, self.names)]()
        if not loss.kind.has_classes or loss.needs_index or not loss.rowwise:
            raise ValueError(f"{name} must be a loss on classes that reads each row alone, got {type(loss).__name__}")
        return loss

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        _check_two_classes(output)
        own, total = surprise_and_total(output, target)

        def value(loss: Loss) -> Tensor:
            if isinstance(loss, _SurpriseLoss):
                return loss.of_surprise(own, total)
            return loss.per_sample(output, target)

        return self.alpha * value(self.active) + self.beta * value(self.passive)

    def closed_form(self, num_classes: int) -> SoftmaxForm | None:
        """See :class:`lossworks.roles.SoftmaxForm`; None where one of the two losses has none."""
        active, passive = self.active, self.passive
        if not (isinstance(active, _SurpriseLoss) and isinstance(passive, _SurpriseLoss)):
            return None

        def value(own: Tensor, total: Tensor) -> Tensor:
            return self.alpha * active.of_surprise(own, total) + self.beta * passive.of_surprise(own, total)

        return SoftmaxForm(value, reads_total=True)


def _check_two_classes(output: Tensor) -> None:
    if output.shape[1] < 2:
        raise ValueError(f"output must have at least 2 classes to normalise over, got shape {tuple(output.shape)}")
