"""Bi-tempered logistic loss: a bounded loss on a heavy-tailed softmax."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lossworks.checks import check_between, check_int, readable
from lossworks.losses._rows import in_blocks, whole_number, whole_power
from lossworks.roles import Loss, RowForm


class BiTemperedLoss(Loss):
    r"""Bi-tempered logistic loss: one temperature bounds what an outlier costs, the other widens the softmax's tail.

    .. math::
        \ell(z, t) = \sum_k t_k (\log_{t_1} t_k - \log_{t_1} p_k) - \frac{t_k^{2 - t_1} - p_k^{2 - t_1}}{2 - t_1},
        \qquad p_k = \exp_{t_2}(z_k - \lambda(z)), \quad \sum_k p_k = 1

    .. math::
        \log_t x = \frac{x^{1 - t} - 1}{1 - t}, \qquad \exp_t x = [1 + (1 - t) x]_+^{1 / (1 - t)}

    ``t1=1, t2=1`` is cross-entropy. It is a Bregman divergence between the label and the tempered softmax
    (:meth:`predict`), and so it is strictly proper: without label smoothing its minimiser predicts the true
    probabilities. The normaliser :math:`\lambda` is found by Newton steps on a concave form, which never overshoot. Its
    gradient is the escort distribution :math:`p_k^{t_2} / \sum_j p_j^{t_2}`, and is right also when ``t1`` and ``t2``
    are tensors. The authors' code takes 5 steps of a fixed-point iteration, after which the probabilities can sum to
    1.01.

    Args:
        t1: The loss's temperature, in [0, 1]. Below 1 no row costs more than :math:`1 / (1 - t_1)`.
        t2: The softmax's temperature, in [1, 5]. Above 1 the tail is heavy. (A value below 1 is refused: a class could
            then get probability 0, from which no gradient leads back.)
        label_smoothing: The share of the label that is spread over all classes, as torch does it, in [0, 1]. The
            authors' code spreads over the other classes: its value is ours times :math:`(C - 1) / C`.
        iterations: The most Newton steps before the last one, >= 1; they end early once another would change nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          class probabilities in the output's shape.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``; at least 0.

    Raises:
        ValueError: a temperature or ``label_smoothing`` out of range, shapes that don't match, a class outside
            ``[0, C)``.

    Use it when some labels or rows are plainly wrong; not when data are clean and large: each Newton step takes a
    logarithm and an exponential of all logits, so it costs about twenty times as much as cross-entropy.

    Papers: amid2019bitempered

    >>> loss = BiTemperedLoss(t1=1.0, t2=1.0)
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6931)
    """

    papers = ("amid2019bitempered",)
    helps = ("noisy labels", "outliers")
    rowwise = True
    soft_targets = True
    probabilistic = True
    settings = ({"t1": 0.8, "t2": 1.2}, {"t1": 0.5, "t2": 1.5}, {"t1": 0.2, "t2": 2.0})

    def __init__(
        self,
        t1: float | Tensor = 0.8,
        t2: float | Tensor = 1.2,
        label_smoothing: float | Tensor = 0.0,
        *,
        iterations: int = 5,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.t1 = check_between("t1", t1, 0, 1)
        self.t2 = check_between("t2", t2, 1, 5)
        self.label_smoothing = check_between("label_smoothing", label_smoothing, 0, 1)
        self.iterations = check_int("iterations", iterations, low=1)

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        log_p = self._log_probability(output)
        rest = 1 - self.t1
        mass = torch.exp((1 + rest) * log_p).sum(dim=1) / (1 + rest)
        if not target.is_floating_point():
            label = target[:, None]
            if not self._smooths():
                own = log_p.gather(1, label).squeeze(1)
                return mass - 1 / (1 + rest) - _tempered(torch.expm1, own, rest)
            target = torch.zeros_like(output).scatter(1, label, 1)
        target = target + self.label_smoothing * (1 / output.shape[1] - target)
        log_target = target.clamp_min(torch.finfo(target.dtype).tiny).log()
        gap = _tempered(torch.expm1, log_target, rest) - _tempered(torch.expm1, log_p, rest)
        return mass + (target * (gap - torch.exp(rest * log_target) / (1 + rest))).sum(dim=1)

    def closed_form(self, num_classes: int) -> RowForm | None:
        """See :class:`lossworks.roles.RowForm`; None for hyperparameters that are tensors, and with smoothing."""
        learns = any(isinstance(held, Tensor) for held in (self.t1, self.t2))
        return None if learns or self._smooths() else RowForm(self._value_and_gradient)

    def _value_and_gradient(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        label, rest, cooling = target[:, None], 1 - self.t1, 1 - self.t2
        logits = output - output.amax(dim=1, keepdim=True)
        (level,) = _levels(logits, cooling, self.iterations + 1)
        own = _tempered(torch.log1p, logits.gather(1, label) - level, cooling)
        ratio = _ratio(level, logits, cooling)
        powered = _power(level, logits, ratio, cooling, 1 + rest)
        mass = powered.sum(dim=1, keepdim=True)
        value = ((mass - 1) / (1 + rest) - _tempered(torch.expm1, own, rest)).squeeze(1)
        pull = torch.exp(rest * own) * ratio.gather(1, label)
        # How the level moves with each logit, up to a factor.
        if 1 + rest == self.t2:
            share = (torch.linalg.vecdot(ratio, powered)[:, None] - pull) / mass
            gradient = ratio.sub_(share).mul_(powered)
        else:
            escort = _power(level, logits, ratio, cooling, self.t2)
            gradient = powered.mul_(ratio)
            share = (gradient.sum(dim=1, keepdim=True) - pull) / escort.sum(dim=1, keepdim=True)
            gradient = torch.addcmul(gradient, escort, -share)
        return value, gradient.scatter_add_(1, label, -pull)

    def _smooths(self) -> bool:
        return isinstance(self.label_smoothing, Tensor) or self.label_smoothing != 0

    def predict(self, output: Tensor) -> Tensor:
        """The tempered softmax."""
        return self._log_probability(output).exp()

    def _log_probability(self, output: Float[Tensor, "*n classes"]) -> Float[Tensor, "*n classes"]:
        """The log of the tempered softmax."""
        cooling = 1 - self.t2
        logits = output - output.detach().amax(dim=-1, keepdim=True)
        with torch.no_grad():
            (level,) = in_blocks(partial(_levels, cooling=cooling, iterations=self.iterations), logits)
        # Steps from a constant carry derivatives of the solution, the first its gradient and the second the next.
        for _ in range(2):
            level = _newton(level, logits, cooling)
        return _tempered(torch.log1p, logits - level, cooling)


def _levels(logits: Tensor, cooling: float | Tensor, iterations: int) -> tuple[Tensor]:
    """Each row's normaliser, up to a small error, after at most ``iterations`` steps; its largest logit must be 0.

    It starts from a lower bound: by Jensen's inequality, the normaliser of as many logits that all equal their mean.
    Where all logits are equal, that is the normaliser itself. A step of size s, in units of ``1 - cooling level``,
    leaves an error of at most ``t2 / 2 s^2`` in those units, and so in the logarithm of each probability.
    """
    apart = _tempered(torch.expm1, logits.new_tensor(-math.log(logits.shape[-1])), cooling)
    alike = logits.mean(dim=-1, keepdim=True) - apart
    level = alike.clamp(min=0)
    enough = torch.finfo(logits.dtype).eps ** 0.5
    for _ in range(iterations):
        before, level = level, _newton(level, logits, cooling)
        step = (level - before) / (1 - cooling * level)
        if readable(step) and bool((step.abs() <= enough).all()):
            break
    return (level,)


def _newton(level: Tensor, logits: Tensor, cooling: float | Tensor) -> Tensor:
    """One Newton step towards the normaliser, on ``total^cooling``, concave in it and linear for equal logits."""
    ratio = _ratio(level, logits, cooling)
    p = _power(level, logits, ratio, cooling)
    total = p.sum(dim=-1, keepdim=True)
    slope = (p.detach() * ratio.detach()).sum(dim=-1, keepdim=True)  # the sum of p^t2
    return level - total * _tempered(torch.expm1, -total.log(), cooling) / slope


def _ratio(level: Tensor, logits: Tensor, cooling: float | Tensor) -> Tensor:
    """``exp_t2(logits - level)^(t2 - 1)``."""
    if isinstance(cooling, Tensor):
        gap = (logits - level).clamp_min(torch.finfo(logits.dtype).min)  # as 0 times -inf would be NaN
        return 1 / (1 + cooling * gap)
    if not cooling:
        return torch.ones_like(logits)
    return torch.add(1 - cooling * level, logits, alpha=cooling).reciprocal_()


def _power(
    level: Tensor, logits: Tensor, ratio: Tensor, cooling: float | Tensor, power: float | Tensor = 1.0
) -> Tensor:
    """``exp_t2(logits - level)^power``, by multiplying ``ratio`` where it is a whole power of that.

    The paper's temperatures give whole powers.
    """
    if not isinstance(cooling, Tensor) and not isinstance(power, Tensor) and cooling:
        exponent = whole_number(-power / cooling)
        if exponent:
            return whole_power(ratio, exponent)
    return (power * _tempered(torch.log1p, logits - level, cooling)).exp()


def _tempered(function: Callable[[Tensor], Tensor], x: Tensor, rate: float | Tensor) -> Tensor:
    """``function(rate x) / rate`` for log1p or expm1, and its limit ``x`` where ``rate`` is 0."""
    if not isinstance(rate, Tensor):
        return function(rate * x) / rate if rate else x
    none = rate == 0
    safe = torch.where(none, 1, rate)
    return torch.where(none, x, function(safe * x) / safe)
