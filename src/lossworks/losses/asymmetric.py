"""Asymmetric loss: the many negatives of a row are turned down harder than its positives."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from lossworks.checks import check_between, check_positive
from lossworks.roles import Loss


class _Asymmetric(Loss):
    rowwise = True
    settings = (
        {"gamma_positive": 0.0, "gamma_negative": 4.0, "clip": 0.05},
        {"gamma_positive": 0.0, "gamma_negative": 2.0, "clip": 0.05},
        {"gamma_positive": 1.0, "gamma_negative": 4.0, "clip": 0.05},
    )

    def __init__(
        self,
        gamma_positive: float | Tensor = 0.0,
        gamma_negative: float | Tensor = 4.0,
        clip: float | Tensor = 0.05,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.gamma_positive = check_positive("gamma_positive", gamma_positive, allow_zero=True)
        self.gamma_negative = check_positive("gamma_negative", gamma_negative, allow_zero=True)
        self.clip = check_between("clip", clip, 0, 1, open_high=True)

    def _positive(self, score: Tensor) -> Tensor:
        return -torch.exp(self.gamma_positive * logsigmoid(-score)) * logsigmoid(score)

    def _negative(self, score: Tensor) -> Tensor:
        """The price of the score of a class that is not there, through ``log(1 - max(p - clip, 0))``."""
        rest = torch.logaddexp(logsigmoid(-score), self._log_clip(score)).clamp_max(0)
        shifted = -torch.expm1(rest).clamp_max(-torch.finfo(rest.dtype).tiny)
        return -(shifted**self.gamma_negative) * rest

    def _log_clip(self, like: Tensor) -> Tensor:
        if not isinstance(self.clip, Tensor):
            return like.new_full((), math.log(self.clip) if self.clip else -math.inf)
        some = self.clip > 0
        return torch.where(some, torch.where(some, self.clip, 1).log(), -math.inf).to(like.dtype)


class AsymmetricLoss(_Asymmetric):
    r"""Asymmetric loss on one label a row: one question a class, where the easy "no"s hardly count.

    .. math::
        \ell(z, y) = -(1 - p_y)^{\gamma_+} \log p_y - \sum_{k \ne y} q_k^{\gamma_-} \log(1 - q_k),
        \qquad p = \sigma(z), \quad q_k = \max(p_k - m, 0)

    This is the paper's multi-label loss on the one-hot label, a sigmoid a class, summed over the classes. (The
    authors' code has another form for one label, a softmax with smoothed labels, in which the negatives count through
    the smoothing alone.) For several labels a row use :class:`MultiLabelAsymmetricLoss`.

    Args:
        gamma_positive: Focusing of the labelled class, >= 0; the authors advise 0, their code's default is 1.
        gamma_negative: Focusing of the other classes, >= ``gamma_positive`` to make sense.
        clip: The shift m: other classes with a probability below it cost nothing, in [0, 1).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: a gamma below 0, ``clip`` outside [0, 1), shapes that don't match, a class outside ``[0, C)``.

    Use it when there are many classes and most are easy to rule out; not where outputs must be probabilities. It takes
    a sigmoid and a power of every logit, so it costs several times cross-entropy.

    Papers: ridnik2021asymmetric

    >>> loss = AsymmetricLoss(gamma_negative=0.0, clip=0.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(1.3863)
    """

    papers = ("ridnik2021asymmetric",)
    helps = ("imbalance", "hard examples", "many classes")

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        label = target[:, None]
        others = output.scatter(1, label, torch.finfo(output.dtype).min)
        return self._negative(others).sum(dim=1) + self._positive(output.gather(1, label)).squeeze(1)


class MultiLabelAsymmetricLoss(_Asymmetric):
    r"""Asymmetric loss on several labels a row: each label is a yes or no, and the easy "no"s hardly count.

    .. math::
        \ell(z, y) = -y\,(1 - p)^{\gamma_+} \log p - (1 - y)\, q^{\gamma_-} \log(1 - q),
        \qquad p = \sigma(z), \quad q = \max(p - m, 0)

    Args:
        gamma_positive: Focusing of the labels that are there, >= 0; the authors advise 0, their code's default is 1.
        gamma_negative: Focusing of the labels that are not, >= ``gamma_positive`` to make sense.
        clip: The shift m: absent labels with a probability below it cost nothing, in [0, 1).
        reduction: ``"mean"`` over rows and labels, ``"sum"`` (the authors') or ``"none"``.

    Shape:
        - output: scores of any shape, usually ``(n, labels)``; target: 0 or 1 in that shape.
        - returns ``()``, or that shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: a gamma below 0, ``clip`` outside [0, 1), shapes that don't match, a target other than 0 and 1.

    Use it when a row has few of many labels, or some labels that are there were not written down; not where outputs
    must be probabilities.

    Papers: ridnik2021asymmetric

    >>> loss = MultiLabelAsymmetricLoss(gamma_negative=0.0, clip=0.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 0]]))
    tensor(0.6931)
    """

    kind = "binary"
    papers = ("ridnik2021asymmetric",)
    helps = ("multi-label", "imbalance", "hard examples")

    def __init__(
        self,
        gamma_positive: float | Tensor = 0.0,
        gamma_negative: float | Tensor = 4.0,
        clip: float | Tensor = 0.05,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(gamma_positive, gamma_negative, clip, reduction=reduction)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return torch.where(target > 0, self._positive(output), self._negative(output))
