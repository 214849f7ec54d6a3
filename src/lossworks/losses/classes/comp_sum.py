"""The comp-sum family: one exponent from the sum-exponential loss over cross-entropy to the mean absolute error."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_bool, check_classes, check_int, check_positive
from lossworks.roles import Loss, SoftmaxForm, cite

_SERIES_BELOW, _SERIES_TERMS = 1e-2, 7  # the first term left out is 1e-14 / 8!, under float64's resolution
_LARGEST_EXPONENT = 60.0
_LARGEST_SURPRISE = 1e30  # stands for an infinite one, of which a bounded loss has its limit


class CompSumLoss(Loss):
    r"""Comp-sum losses: cross-entropy with an exponent that sets how much hard and wrongly labelled rows count.

    .. math::
        \ell_\tau(z, y) = \frac{1 - p_y^{\tau - 1}}{\tau - 1}, \qquad p = \mathrm{softmax}(z / \rho), \qquad
        \frac{\partial \ell_\tau}{\partial z_k} = \tfrac1\rho\, p_y^{\tau - 1} (p_k - [k = y])

    ``tau=0`` is the sum-exponential loss :math:`1/p_y - 1`, ``tau=1`` cross-entropy, ``1 < tau < 2`` the generalised
    cross-entropy with :math:`q = \tau - 1`, ``tau=2`` half the mean absolute error, :math:`1 - p_y`. Where the loss
    would overflow with ``tau < 1`` (:math:`p_y^{\tau - 1} > e^{60}`), it follows its tangent in :math:`\log p_y` and so
    stays finite.

    Args:
        tau: The exponent, >= 0. Above 1 it bounds the loss by :math:`1/(\tau - 1)`, and so the effect of a wrong label;
            below 1 it concentrates on the hardest rows.
        rho: The temperature by which the logits are divided, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``tau < 0``, ``rho <= 0``, shapes that don't match, a class outside ``[0, C)``.

    Use it when some labels are wrong (``tau`` about 1.5) or to have one hyperparameter to tune; near 1 it is
    cross-entropy, and far from 1 it is harder to optimise. With ``tau < 1`` clip the gradient.

    Papers: mao2023crossentropy

    >>> loss = CompSumLoss(tau=2.0)
    >>> loss(torch.zeros(1, 4), torch.tensor([0]))
    tensor(0.7500)
    """

    papers = ("mao2023crossentropy",)
    helps = ("noisy labels", "hard examples")
    rowwise = True
    settings = ({"tau": 1.0}, {"tau": 0.5}, {"tau": 1.5})

    def __init__(
        self,
        tau: float | Tensor = 1.0,
        rho: float | Tensor = 1.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.tau = check_positive("tau", tau, allow_zero=True)
        self.rho = check_positive("rho", rho)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        check_classes(output, target)
        return self.of_surprise(cross_entropy(_divided(output, self.rho), target, reduction="none"))

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        return SoftmaxForm(self.of_surprise, scale=1 / self.rho)

    def of_surprise(self, surprise: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row from its cross-entropy."""
        lost = surprise.isinf()
        log_prob = -surprise.masked_fill(lost, _LARGEST_SURPRISE)
        rate = self.tau - 1
        exponent = rate * log_prob
        near = exponent.abs() < _SERIES_BELOW  # there the quotient below would lose its digits, and be 0/0 at tau = 1
        series = torch.ones_like(log_prob)
        for k in range(_SERIES_TERMS, 1, -1):
            series = 1 + torch.where(near, exponent, 0) / k * series
        power = torch.expm1(exponent.clamp(max=_LARGEST_EXPONENT))
        tangent = math.exp(_LARGEST_EXPONENT) * (exponent - _LARGEST_EXPONENT).relu()
        value = -torch.where(
            near, log_prob * series, (power + tangent) / torch.where(near, torch.ones_like(log_prob), rate)
        )
        bounded = torch.as_tensor(rate, device=lost.device) > 0
        return torch.where(lost & ~bounded, surprise, value)

    def predict(self, output: Tensor) -> Tensor:
        r"""Class probabilities :math:`\eta`, from the softmax at the optimum, :math:`p \propto \eta^{1/(2 - \tau)}`.

        For ``tau >= 2`` it is the softmax itself.
        """
        power = 2 - torch.as_tensor(self.tau, dtype=output.dtype, device=output.device)
        return (torch.where(power > 0, power, 1) * _divided(output, self.rho)).softmax(dim=-1)


@cite("mao2023crossentropy")
def comp_sum_h_consistency_bound(gap: float, tau: float, num_classes: int, *, tight: bool = True) -> float:
    r"""Bound a classifier's excess error rate by its excess comp-sum loss.

    .. math::
        R_{01}(h) - R_{01}^* \le \mathcal{T}_\tau^{-1}\big(R_{\ell_\tau}(h) - R_{\ell_\tau}^*\big)
        \quad\text{up to minimisability gaps}

    Args:
        gap: The excess of the loss over its minimum in the hypothesis set, >= 0.
        tau: The loss's exponent, >= 0.
        num_classes: C, at least 2.
        tight: Whether to invert :math:`\mathcal{T}_\tau` itself; if not, the bound is a looser one in closed form, such
            as :math:`\sqrt{2 s}` for cross-entropy.

    Returns:
        The bound on the excess error rate, in [0, 1].

    Raises:
        ValueError: ``gap < 0``, ``tau < 0`` or ``num_classes < 2``.

    Papers: mao2023crossentropy

    >>> round(comp_sum_h_consistency_bound(0.02, tau=1.0, num_classes=10, tight=False), 3)
    0.2
    """
    check_positive("gap", gap, allow_zero=True)
    check_positive("tau", tau, allow_zero=True)
    check_int("num_classes", num_classes, low=2, high=2**53)
    gap, tau = float(gap), float(tau)
    if tau >= 2:
        try:
            return min(1.0, (tau - 1) * num_classes ** (tau - 1) * gap)
        except OverflowError:
            return float(gap > 0)
    check_bool("tight", tight)
    if not tight:
        scale = 2**tau * (2 - tau) if tau < 1 else 2 * num_classes ** (tau - 1)
        return min(1.0, math.sqrt(scale * gap))
    if gap >= _transform(1.0, tau, num_classes):
        return 1.0
    from scipy.optimize import brentq  # half a second to import, for this one function

    return float(brentq(lambda t: _transform(t, tau, num_classes) - gap, 0.0, 1.0, xtol=1e-15))


def _divided(output: Tensor, rho: float | Tensor) -> Tensor:
    """The logits divided by rho; the logits themselves where rho is 1."""
    return output if not isinstance(rho, Tensor) and rho == 1 else output / rho


def _transform(t: float, tau: float, num_classes: int) -> float:
    """The least excess loss at which an excess error of t is possible, for tau < 2."""
    parts = [x for x in (1 + t, 1 - t) if x > 0]
    if tau == 1:
        return sum(x * math.log(x) for x in parts) / 2
    # log of the mean of (1 +- t)^s: by expm1 where s is near 1 and the sum would cancel, in log space where s is large
    s = 1 / (2 - tau)
    if s < 2:
        log_mean = math.log1p(sum(x * math.expm1((s - 1) * math.log(x)) for x in parts) / 2)
    else:
        largest = s * math.log(parts[0])
        log_mean = largest + math.log(sum(math.exp(s * math.log(x) - largest) for x in parts) / 2)
    base = 2 if tau < 1 else num_classes
    return base ** (1 - tau) * math.expm1((2 - tau) * log_mean) / (tau - 1)
