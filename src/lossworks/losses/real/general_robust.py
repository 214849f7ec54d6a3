"""Barron's general robust loss: one shape, fixed or learned, from squared error to losses that ignore outliers."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import check_between, check_bool, check_positive
from lossworks.roles import REAL, Loss

_STEP = 0.1
_NODES = 400  # each side of 0


class GeneralRobustLoss(Loss):
    r"""Barron's general robust loss: its shape parameter, fixed or learned, sets how little outliers count.

    .. math::
        \rho(e, \alpha, c) = \frac{|\alpha - 2|}{\alpha}
            \left(\Big(\frac{(e / c)^2}{|\alpha - 2|} + 1\Big)^{\alpha / 2} - 1\right), \qquad e = z - y

    Where the formula has no value, its limit is taken. :math:`\alpha = 2` is half the squared error, 1 is Charbonnier's
    loss (pseudo-Huber), 0 Cauchy's, -2 Geman-McClure's and :math:`-\infty` Welsch's.

    With ``learn`` the loss is the negative log-likelihood of the density proportional to :math:`e^{-\rho}`,

    .. math::
        \ell(z, y) = \rho(e, \alpha, c) + \log c + \log Z(\alpha), \qquad Z(\alpha) = \int e^{-\rho(x, \alpha, 1)}\,dx,

    and :math:`\alpha \in (0, 2)` and :math:`c > 0` are trained with the model: give ``loss.parameters()`` to the
    optimizer too. Without Z, training would drive the shape to :math:`-\infty`, where every row counts as an outlier.
    Each call integrates Z by the trapezoidal rule after the substitution :math:`x = \sqrt{|\alpha - 2|} \sinh u`, to a
    relative error below 1e-10 in float64.

    Args:
        alpha: The shape, in [-inf, 2]; with ``learn``, the shape to start from, in (0, 2).
        scale: c, the residual that counts as large, in the target's units, > 0; with ``learn``, the scale to start
            from.
        learn: Whether shape and scale are trained, as the parameters ``alpha_logit`` and ``log_scale``, ``()`` each.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n, ...)``, floating-point, of about unit scale.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0 unless ``learn`` is set.

    Raises:
        ValueError: ``alpha`` outside its range, ``scale <= 0``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it when you don't know how heavy the tails are; if you do, the special case costs less.

    Papers: barron2019general

    >>> round(GeneralRobustLoss(alpha=2.0)(torch.tensor([0.0]), torch.tensor([2.0])).item(), 4)
    2.0
    """

    papers = ("barron2019general",)
    helps = ("outliers", "heavy tails")
    kind = REAL
    rowwise = True
    settings = ({"alpha": 1.0}, {"alpha": 0.0}, {"alpha": -2.0}, {"alpha": 1.0, "scale": 0.3})
    modes = ({"alpha": 1.0, "learn": True},)

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        scale: float | Tensor = 1.0,
        learn: bool = False,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_bool("learn", learn)
        low = 0.0 if learn else -math.inf
        alpha = check_between("alpha", alpha, low, 2, open_low=learn, open_high=learn)
        scale = check_positive("scale", scale)
        self.learn = learn
        if learn:
            self.alpha_logit = nn.Parameter(torch.logit(_tensor(alpha) / 2))
            self.log_scale = nn.Parameter(torch.log(_tensor(scale)))
        else:
            self.alpha, self.scale = alpha, scale

    def shape_and_scale(self) -> tuple[float | Tensor, float | Tensor]:
        """The current shape and scale."""
        if not self.learn:
            return self.alpha, self.scale
        return 2 * self.alpha_logit.sigmoid(), self.log_scale.exp()

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        alpha, scale = self.shape_and_scale()
        if not isinstance(alpha, Tensor):
            return _robust_of_shape(alpha, (output - target) / scale)
        alpha = torch.as_tensor(alpha, dtype=output.dtype, device=output.device)
        pole = _pole(alpha)
        rho = _robust(torch.log1p(((output - target) / scale).square() / pole) / 2, alpha)
        return rho + self.log_scale.to(rho.dtype) + log_partition(alpha) if self.learn else rho


def _robust_of_shape(alpha: float, x: Tensor) -> Tensor:
    r""":math:`\rho(x, \alpha, 1)` for a shape that is a number; where the formula has no value, by its limit."""
    if alpha == 2:
        return x.square() / 2
    eps = torch.finfo(x.dtype).eps
    pole, alpha = min(max(2 - alpha, eps), 1 / eps), max(alpha, -1 / eps)
    log_base = torch.log1p((x / math.sqrt(pole)).square())
    if abs(alpha) < eps / 128:
        return pole / 2 * log_base
    return pole / alpha * torch.expm1(alpha / 2 * log_base)


def log_partition(alpha: Float[Tensor, ""]) -> Float[Tensor, ""]:
    r""":math:`\log Z(\alpha)` of the general robust loss's density at unit scale, for :math:`\alpha` in [0, 2].

    >>> log_partition(torch.tensor(2.0)) - 0.5 * math.log(2 * math.pi) < 1e-5
    tensor(True)
    """
    u = _STEP * torch.arange(-_NODES, _NODES + 1, dtype=alpha.dtype, device=alpha.device)
    log_cosh = torch.logaddexp(u, -u) - math.log(2)
    return torch.logsumexp(log_cosh - _robust(log_cosh, alpha), dim=0) + math.log(_STEP) + _pole(alpha).log() / 2


def _robust(log_cosh: Tensor, alpha: Tensor) -> Tensor:
    r""":math:`\rho` at :math:`x = \sqrt{|\alpha - 2|} \sinh u`, given :math:`\log\cosh u`; for all shapes."""
    limited = alpha.clamp(min=-1 / torch.finfo(alpha.dtype).eps)
    return _pole(alpha) * log_cosh * _expm1_ratio(limited * log_cosh)


def _pole(alpha: Tensor) -> Tensor:
    r""":math:`|\alpha - 2|`, kept away from 0 and infinity; there :math:`\rho` equals its limits to the last digit."""
    eps = torch.finfo(alpha.dtype).eps
    return (2 - alpha).clamp(eps, 1 / eps)


def _expm1_ratio(t: Tensor) -> Tensor:
    """``expm1(t) / t``, by its series near 0, where the quotient's derivative would lose digits."""
    near = t.abs() < torch.finfo(t.dtype).eps ** 0.25
    safe = torch.where(near, 1.0, t)
    return torch.where(near, 1 + t / 2 * (1 + t / 3 * (1 + t / 4)), torch.expm1(safe) / safe)


def _tensor(value: float | Tensor) -> Tensor:
    return value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))
