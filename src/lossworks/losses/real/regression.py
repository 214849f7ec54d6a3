r"""Losses of the residual :math:`e = z - y` for real targets; the robust ones expect targets of about unit scale."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lossworks.checks import check_between, check_positive
from lossworks.roles import REAL, Loss


class _RealLoss(Loss):
    kind = REAL
    rowwise = True


class SquaredLoss(_RealLoss):
    r"""Squared error: the best prediction is the mean of the target.

    .. math::
        \ell(z, y) = (z - y)^2

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, in the target's units.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0, in squared units.

    Raises:
        ValueError: shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it first, and whenever the mean is wanted; not when the target has outliers, which dominate it.

    Papers: legendre1805squares

    >>> SquaredLoss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """

    papers = ("legendre1805squares",)
    helps = ("baseline",)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return F.mse_loss(output, target, reduction="none")


class AbsoluteLoss(_RealLoss):
    r"""Absolute error: the best prediction is the median of the target.

    .. math::
        \ell(z, y) = |z - y|

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, in the target's units.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0, in the target's units.

    Raises:
        ValueError: shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it when the median is a better answer than the mean; its gradient never shrinks, so lower the learning rate at
    the end.

    Papers: bassett1978lad

    >>> AbsoluteLoss()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.)
    """

    papers = ("bassett1978lad",)
    helps = ("outliers", "heavy tails")

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        return F.l1_loss(output, target, reduction="none")


class HuberLoss(_RealLoss):
    r"""Huber's loss: squared error for small residuals, absolute error for large ones.

    .. math::
        \ell(z, y) = \tfrac12 e^2 \;\text{for}\; |e| \le \delta, \qquad \delta\,(|e| - \tfrac12 \delta) \;\text{beyond},
        \qquad e = z - y

    Unlike :func:`torch.nn.functional.huber_loss`, ``delta`` may be a tensor.

    Args:
        delta: The residual at which the loss turns linear, in the target's units, > 0; the default assumes targets of
            unit scale.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, in the target's units.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0, in squared units.

    Raises:
        ValueError: ``delta <= 0``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it when a few targets are far off. For skewed targets its best prediction is neither the mean nor the median.

    Papers: huber1964robust

    >>> HuberLoss()(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """

    papers = ("huber1964robust",)
    helps = ("outliers",)
    settings = ({"delta": 1.0}, {"delta": 0.2})

    def __init__(self, delta: float | Tensor = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.delta = check_positive("delta", delta)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if not isinstance(self.delta, Tensor):
            return F.huber_loss(output, target, reduction="none", delta=self.delta)
        size = (output - target).abs()
        clipped = size.clamp(max=self.delta)
        return clipped * (size - clipped / 2)


class LogCoshLoss(_RealLoss):
    r"""Log-cosh loss: like Huber's loss, squared near zero and absolute far from it, but smooth everywhere.

    .. math::
        \ell(z, y) = \log\cosh(z - y)

    It is :math:`e^2 / 2` near zero and :math:`|e| - \log 2` far from it; its gradient is :math:`\tanh e`.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, of about unit scale.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it like Huber's loss where a smooth second derivative helps; it has no parameter for the target's scale, so
    standardise the target first.

    Papers: saleh2022logcosh

    >>> LogCoshLoss()(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.4338)
    """

    papers = ("saleh2022logcosh",)
    helps = ("outliers",)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        residual = output - target
        size = residual.abs()
        # Each form is exact where the other loses its digits or overflows.
        near = torch.log1p(2 * (residual.clamp(-1, 1) / 2).sinh().square())
        far = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
        return torch.where(size < 1, near, far)


class PinballLoss(_RealLoss):
    r"""Pinball loss for quantile regression: the best prediction is one quantile of the target.

    .. math::
        \ell(z, y) = \max(\tau\,(y - z),\; (\tau - 1)\,(y - z))

    It fits one quantile a model. Fitting several together without crossing is the task of a quantile aggregate.

    Args:
        quantile: :math:`\tau`, the share of targets that lie below the prediction, in (0, 1); with 0.5 the loss is half
            the absolute error.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, in the target's units.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0, in the target's units.

    Raises:
        ValueError: ``quantile`` outside (0, 1), shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it when predicting too low and predicting too high cost differently; not when the mean is wanted.

    Papers: koenker1978quantiles

    >>> PinballLoss(0.9)(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))
    tensor(0.5000)
    """

    papers = ("koenker1978quantiles",)
    helps = ("quantiles",)

    def __init__(self, quantile: float | Tensor = 0.5, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.quantile = check_between("quantile", quantile, 0, 1, open_low=True, open_high=True)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        below = target - output
        return torch.maximum(self.quantile * below, (self.quantile - 1) * below)


class TukeyBiweightLoss(_RealLoss):
    r"""Tukey's biweight loss: bounded, so that a target far enough from the prediction has no gradient at all.

    .. math::
        \ell(z, y) = \tfrac{c^2}{6} \left(1 - (1 - (e / c)^2)^3\right) \;\text{for}\; |e| \le c,
        \qquad \tfrac{c^2}{6} \;\text{beyond}, \qquad e = z - y

    Args:
        c: The residual from which on the loss is constant, in the target's units, > 0; 4.685 keeps 95 % of the mean's
            efficiency on normal residuals of unit scale.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, in the target's units.
        - returns ``()``, or the target's shape with ``reduction="none"``; in [0, c²/6].

    Raises:
        ValueError: ``c <= 0``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it when outliers are errors to be ignored; a model that starts more than ``c`` away learns nothing, so
    standardise the target first.

    Papers: beaton1974biweight

    >>> TukeyBiweightLoss(c=3.0)(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 99.0]))
    tensor(1.5000)
    """

    papers = ("beaton1974biweight",)
    helps = ("outliers",)
    settings = ({"c": 4.685}, {"c": 2.0})

    def __init__(self, c: float | Tensor = 4.685, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.c = check_positive("c", c)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        u = ((output - target) / self.c).square().clamp(max=1)
        return self.c / 6 * (self.c * u) * (3 - 3 * u + u.square())
