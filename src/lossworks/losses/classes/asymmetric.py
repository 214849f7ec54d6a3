"""Asymmetric loss: the many negatives of a row are down-weighted more than its positives."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from lossworks.checks import check_between, check_positive
from lossworks.losses._rows import in_blocks, whole_number, whole_power
from lossworks.roles import BINARY, Loss, RowForm


class _FocusingLoss(Loss):
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


def _price_and_slope(score: Tensor, gamma: float | Tensor, clip: float | Tensor) -> tuple[Tensor, Tensor]:
    """``-q^gamma log(1 - q)`` and its derivative in the score, where ``q = max(sigmoid(score) - clip, 0)``."""
    tiny = torch.finfo(score.dtype).tiny
    p = score.sigmoid()
    other = 1 - p
    q, rest = (p - clip).clamp_min(0), (other + clip).clamp(tiny, 1)
    cost = -_log_rest(score, rest, clip)
    edge = 1 - clip / rest  # this is (1 - p) / (1 - q), also where there is no clip and both underflow
    whole = None if isinstance(gamma, Tensor) else whole_number(gamma)
    largest = torch.finfo(score.dtype).max  # bounds an infinite price, as it meets a slope of 0
    if whole:
        lower = whole_power(q, whole - 1) if whole > 1 else torch.ones_like(q)
        return lower * q * cost, p * lower * torch.addcmul(q * edge, other, cost.clamp_max(largest), value=whole)
    focus = torch.exp(gamma * q.clamp_min(tiny).log())
    price = focus * cost
    slope = p * q.sign() * (focus * edge + gamma * other * price.clamp_max(largest) / q.clamp_min(tiny))
    return price, slope


def _log_rest(score: Tensor, rest: Tensor, clip: float | Tensor) -> Tensor:
    """``log(1 - q)``, which without a clip is ``logsigmoid(-score)`` and so stays finite."""
    if not isinstance(clip, Tensor):
        return rest.log() if clip else -softplus(score)
    clipped = clip > 0
    return torch.where(clipped, torch.where(clipped, rest, 1).log(), -softplus(score))


def _price(score: Tensor, gamma: float | Tensor, clip: float | Tensor) -> Tensor:
    """The loss of the score of an absent label; with the score's sign flipped, that of a present one."""
    if torch.compiler.is_compiling() or isinstance(gamma, Tensor) or isinstance(clip, Tensor):
        return _price_and_slope(score, gamma, clip)[0]
    price: Tensor = _Price.apply(score, gamma, clip)[0]
    return price


class _Price(torch.autograd.Function):
    """The price and its derivative: computing both together costs little more than the price alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(score: Tensor, gamma: float, clip: float) -> tuple[Tensor, Tensor]:
        price, slope = in_blocks(partial(_price_and_slope, gamma=gamma, clip=clip), score)
        return price, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.hyperparameters = inputs[1:]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, price: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        score, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # so that the gradient may itself be differentiated
            slope = _price_and_slope(score, *ctx.hyperparameters)[1]
        return price * slope, None, None


class AsymmetricLoss(_FocusingLoss):
    r"""Asymmetric loss for one label a row: a yes-or-no question a class, where the easy "no"s hardly count.

    .. math::
        \ell(z, y) = -(1 - p_y)^{\gamma_+} \log p_y - \sum_{k \ne y} q_k^{\gamma_-} \log(1 - q_k),
        \qquad p = \sigma(z), \quad q_k = \max(p_k - m, 0)

    This is the paper's multi-label loss on the one-hot label, with one sigmoid a class, summed over the classes. (For
    one label a row the authors' code has another form, a softmax with smoothed labels, in which the negatives count
    only through the smoothing.) For several labels a row use :class:`MultiLabelAsymmetricLoss`.

    Args:
        gamma_positive: The focusing exponent :math:`\gamma_+` of the labelled class, >= 0; the authors advise 0, their
            code's default is 1.
        gamma_negative: The focusing exponent :math:`\gamma_-` of the other classes, >= 0; choose it at least as large
            as ``gamma_positive``.
        clip: The shift m, in [0, 1): other classes whose probability is below it cost nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: a gamma below 0, ``clip`` outside [0, 1), shapes that don't match, a class outside ``[0, C)``.

    Use it when there are many classes and most are easy to rule out; not where outputs must be probabilities. It takes
    a sigmoid, a power and a logarithm of every logit, so it costs about five times as much as cross-entropy.

    Papers: ridnik2021asymmetric

    >>> loss = AsymmetricLoss(gamma_negative=0.0, clip=0.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(1.3863)
    """

    papers = ("ridnik2021asymmetric",)
    helps = ("imbalance", "hard examples", "many classes")
    reads_offset = True

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        label = target[:, None]
        others = output.scatter(1, label, torch.finfo(output.dtype).min)
        own = _price(-output.gather(1, label), self.gamma_positive, 0.0)
        return _price(others, self.gamma_negative, self.clip).sum(dim=1) + own.squeeze(1)

    def closed_form(self, num_classes: int) -> RowForm:
        """See :class:`lossworks.roles.RowForm`."""
        return RowForm(self._value_and_gradient)

    def _value_and_gradient(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        label = target[:, None]
        price, slope = _price_and_slope(output, self.gamma_negative, self.clip)
        own, own_slope = _price_and_slope(-output.gather(1, label), self.gamma_positive, 0.0)
        value = price.scatter_(1, label, own).sum(dim=1)
        return value, slope.scatter_(1, label, -own_slope)


class MultiLabelAsymmetricLoss(_FocusingLoss):
    r"""Asymmetric loss for several labels a row: each label is a yes or no, and the easy "no"s hardly count.

    .. math::
        \ell(z, y) = -y\,(1 - p)^{\gamma_+} \log p - (1 - y)\, q^{\gamma_-} \log(1 - q),
        \qquad p = \sigma(z), \quad q = \max(p - m, 0)

    Args:
        gamma_positive: The focusing exponent :math:`\gamma_+` of the labels that are present, >= 0; the authors advise
            0, their code's default is 1.
        gamma_negative: The focusing exponent :math:`\gamma_-` of the absent labels, >= 0; it makes sense only at
            ``gamma_positive`` or above.
        clip: The shift m, in [0, 1): absent labels whose probability is below it cost nothing.
        reduction: ``"mean"`` over rows and labels, ``"sum"`` (the authors') or ``"none"``.

    Shape:
        - output: scores of any shape, usually ``(n, labels)``; target: 0 or 1 in that shape.
        - returns ``()``, or that shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: a gamma below 0, ``clip`` outside [0, 1), shapes that don't match, a target other than 0 and 1.

    Use it when a row has few of many labels, or when some labels that apply were not recorded; not where outputs must
    be probabilities. It takes a power and a logarithm of every score, so it costs about eight times as much as binary
    cross-entropy.

    Papers: ridnik2021asymmetric

    >>> loss = MultiLabelAsymmetricLoss(gamma_negative=0.0, clip=0.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 0]]))
    tensor(0.6931)
    """

    kind = BINARY
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
        absent = _price(output, self.gamma_negative, self.clip)
        return torch.where(target > 0, _price(-output, self.gamma_positive, 0.0), absent)
