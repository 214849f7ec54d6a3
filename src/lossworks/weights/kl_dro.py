"""KL-DRO: the worst distribution near the data's own in relative entropy, which has exponential weights."""

import math
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_between, check_floating, check_positive, check_same_shape, readable, wide
from lossworks.roles import Part, Weighting, cite
from lossworks.weights.worst_case import Solution, WorstCaseWeights, check_losses, number_like, number_of

__all__ = ["KLDRO", "CompositionalEMA", "KLDRORisk", "kl_dro_weights"]

_STEPS = 60
"""The steps of the search for a temperature, at most."""
_CLOSE, _ROUGH = 1e-5, 1e-2
"""The relative error from which a step is the last: on all rows, and on a sample, from which the search only starts."""
_NEAR = 1e-3
"""Below this relative error, a step that does not halve it is rounding."""
_SMALL = 1e-40
_ROUNDING = 1e-15
_MANY, _EVERY = 16_384, 16
"""With more than _MANY rows, the search starts from the solution of a sample, every _EVERY-th row."""


class KLDRO(WorstCaseWeights):
    r"""KL-DRO: hard rows count more, by the worst distribution over the rows near uniform in KL divergence.

    .. math::
        \max_w \; \tfrac1n \sum_i w_i \ell_i - T\, \mathrm{KL}(w), \qquad
        \mathrm{KL}(w) = \tfrac1n \sum_i w_i \log w_i, \qquad
        w_i = \frac{e^{\ell_i / T}}{\tfrac1n \sum_j e^{\ell_j / T}}

    With ``temperature``, T is the price on the divergence; the value is :math:`T \log \tfrac1n \sum_i e^{\ell_i / T}`,
    between the mean (:math:`T \to \infty`) and the largest loss (:math:`T \to 0`). With ``radius``, the maximum is over
    :math:`\mathrm{KL}(w) \le \rho`, and T is found so that the weights are at that distance; from :math:`\rho = \log n`
    on, only the worst row counts. The dual variable is T.

    The weights compare the rows of a batch, so a batch that is split must be weighted as a whole:
    :class:`lossworks.Objective` does this, with ``process_group=`` and in its ``micro_batches``. For small batches,
    :class:`CompositionalEMA` remembers the normaliser from batch to batch.

    Args:
        temperature: The price T, in units of the loss, > 0; 1 if neither this nor ``radius`` is given. A large T counts
            all rows alike, a small one only the worst.
        radius: :math:`\rho`, the largest divergence from uniform, >= 0; give it instead of a temperature.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``, of mean 1.

    Raises:
        ValueError: ``temperature <= 0``, ``radius < 0``, or both given; a loss that is NaN or infinite (the error names
            its row).
        TypeError: losses that are not floating-point.

    Use it when the worst rows matter, as with rare classes or groups that nobody labelled. Not where labels are noisy:
    wrongly labelled rows are hard too, and would count most.

    Papers: sow2024doubly

    >>> KLDRO(temperature=1.0)(torch.tensor([0.0, 0.0, 2.0])) > 1
    tensor([False, False,  True])
    """

    papers = ("sow2024doubly",)
    helps = ("worst case", "hard examples", "imbalance")
    settings = ({"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0}, {"radius": 0.1})

    def __init__(self, *, temperature: float | Tensor | None = None, radius: float | Tensor | None = None) -> None:
        super().__init__()
        if temperature is not None and radius is not None:
            raise ValueError("temperature and radius exclude each other: give only one of them")
        price = 1.0 if temperature is None and radius is None else temperature
        self.radius = None if radius is None else check_positive("radius", radius, allow_zero=True)
        self.temperature = None if price is None else check_positive("temperature", price)

    def _solve(self, losses: Float[Tensor, " n"]) -> Solution:
        losses = losses.double()
        top = losses.max()
        below = losses - top
        if self.temperature is not None:
            temperature = number_like(losses, self.temperature)
            weights = (below / temperature).exp()
            mean = weights.mean()  # at least 1/n, as the largest of them is 1
            return Solution(top + temperature * mean.log(), weights / mean, temperature)
        assert self.radius is not None
        radius = number_of(losses, self.radius)
        if not isinstance(radius, Tensor) and losses.device.type == "cpu":
            return _by_floats(losses, radius)
        rate, sharp = _rate(below, number_like(losses, radius))
        weights = (below * rate).softmax(dim=0) * len(losses)
        worst = (below == 0).to(weights.dtype)
        weights = torch.where(sharp, worst / worst.mean(), weights)
        return Solution((weights * losses).mean(), weights, torch.where(sharp, 0, 1 / rate))


def _by_floats(losses: Float[Tensor, " n"], radius: float) -> Solution:
    """The weights at this distance, with the search's few numbers as floats, which cost less than tensors."""
    top = losses.max()
    below = losses - top
    worst = np.equal(below.numpy(), 0.0)
    count = len(worst) / np.count_nonzero(worst)
    if radius >= math.log(count):
        return Solution(top, torch.from_numpy(worst).to(below.dtype).mul_(count), torch.zeros_like(top))
    span = -float(below.min())
    if not _SMALL < span < 1 / _SMALL:  # where moments of the losses would underflow or overflow
        scaled = _by_floats(below / span, radius)
        return Solution(top + span * scaled.value, scaled.weights, span * scaled.dual)
    wanted, rate = math.sqrt(2 * radius), math.nan
    if len(below) > _MANY:
        sampled = below[::_EVERY] - below[::_EVERY].max()
        rate = _searched(sampled, wanted, rate, _ROUGH)[0] if bool(sampled.any()) else rate
    rate, weights = _searched(below, wanted, rate, _CLOSE)
    temperature = 1 / rate if rate else math.inf
    return Solution(top + float(weights @ below) / len(below), weights, torch.full_like(top, temperature))


def _searched(
    below: Float[Tensor, " n"], wanted: float, rate: float, close: float
) -> tuple[float, Float[Tensor, " n"]]:
    """The rate 1/T at which the root of twice the distance is ``wanted``, and the weights there, of mean 1.

    Halley's method, in a bracket: each step triples the digits, so a step from ``close`` is the last. A rate of NaN
    stands for the first guess, by the spread of the losses.
    """
    low, high, last, n = 0.0, math.inf, math.inf, len(below)
    weights = torch.empty_like(below)
    # The same memory. Of few rows numpy's sums cost half of torch's; of many it may wait for its own threads.
    held: Any
    tilted: Any
    held, tilted = (below, weights) if n > _MANY else (below.numpy(), weights.numpy())
    add, multiply = cast(Any, (torch.sum, torch.mul) if n > _MANY else (np.add.reduce, np.multiply))
    if math.isnan(rate):
        mean = float(add(held)) / n
        variance = float(held @ held) / n - mean * mean
        rate = wanted / math.sqrt(variance) if variance > 0 else -wanted / mean
    for _ in range(_STEPS):
        torch.mul(below, rate, out=weights).exp_()
        total = float(add(tilted))
        multiply(tilted, held, out=tilted)
        mean, square = float(add(tilted)) / total, float(tilted @ held) / total
        multiply(tilted, held, out=tilted)
        cube = float(tilted @ held) / total
        spread = max(square - mean * mean, 0.0)
        skew = cube - mean * (3 * square - 2 * mean * mean)
        distance = math.sqrt(2 * max(rate * mean - math.log(total / n), 0.0))
        error = distance - wanted
        if last <= _NEAR * wanted and abs(error) >= last / 2:
            break  # nothing but rounding is left
        low, high, last = (rate, high, abs(error)) if error < 0 else (low, rate, abs(error))
        step = math.inf
        if spread and distance:
            slope = rate * spread / distance
            bend = (spread + rate * skew - slope * slope) / distance
            step = rate - 2 * error * slope / (2 * slope * slope - error * bend)
        rate = step if low <= step <= high and step < math.inf else 2 * low if math.isinf(high) else (low + high) / 2
        if last <= close * wanted:
            break
    torch.mul(below, rate, out=weights).exp_()
    return rate, weights.div_(float(add(tilted)) / n)


def _rate(below: Float[Tensor, " n"], radius: Tensor) -> tuple[Float[Tensor, ""], Tensor]:
    """The 1/T at which the weights are at this distance from uniform, and whether no finite one is far enough.

    The root of twice the distance is nearly linear in 1/T, so few Newton steps on it are needed; a bracket keeps
    them in bounds. Two more steps from the solution carry its first and second derivatives in the radius.
    """
    wanted = (2 * radius).sqrt()
    sharp = radius >= -(below == 0).to(below.dtype).mean().log()
    fixed = wanted.detach()
    low, high = torch.zeros_like(fixed), torch.full_like(fixed, math.inf)
    variance = below.var(correction=0)
    rate = fixed / torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    for _ in range(_STEPS):
        distance, slope = _distance(below, rate)
        error = fixed - distance
        if readable(error) and (bool(sharp) or bool(error.abs() <= _ROUNDING * fixed)):
            break
        low, high = torch.where(error > 0, rate, low), torch.where(error < 0, rate, high)
        step = rate + error / slope
        within = (step > low) & (step < high)
        middle = torch.where(high.isinf(), 2 * rate, (low + high) / 2)
        rate = torch.where(error == 0, rate, torch.where(within, step, middle))
    usual = ~sharp & (fixed > 0)
    for _ in range(2):
        distance, slope = _distance(below, torch.where(usual, rate, 1))
        step = (wanted - distance) / torch.where(usual, slope, 1)
        rate = rate + torch.where(usual, step, 0)
    return rate, sharp


def _distance(below: Float[Tensor, " n"], rate: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The root of twice the weights' divergence from uniform, and its slope in the rate."""
    weights = (below * rate).exp()
    total = weights.mean()
    mean = (weights * below).mean() / total
    spread = (weights * below * below).mean() / total - mean * mean
    distance = (2 * (rate * mean - total.log()).clamp(min=0)).sqrt()
    return distance, rate * spread / distance


class CompositionalEMA(Weighting):
    r"""KL-DRO weights for small batches, with a normaliser that is remembered from batch to batch.

    .. math::
        u \leftarrow (1 - \eta)\, u + \eta\, \tfrac1n \sum_i e^{\ell_i / T}, \qquad w_i = e^{\ell_i / T} / u

    A small batch of easy rows then has small weights, where :class:`KLDRO` would give it a mean weight of 1. Over many
    batches the gradient is that of :math:`T \log \mathbb{E}\, e^{\ell / T}`. The first batch sets u. The weights have
    the mean 1 over the batches that u remembers. The normaliser u changes once a step, in ``train()`` mode only;
    micro-batches and ranks use the same u, that of the whole batch.

    Args:
        temperature: T, in loss units, > 0.
        momentum: The share :math:`\eta` of the newest batch in u, in (0, 1]; with 1 it is :class:`KLDRO`.

    Buffers:
        log_u: ``()`` float64, :math:`\log u`; minus infinity before the first batch.

    Shape:
        - losses: ``(n,)``; returns ``(n,)``.

    Raises:
        ValueError: ``temperature <= 0``, ``momentum`` outside (0, 1]; a loss that is NaN or infinite (the error names
            its row).

    Use it instead of :class:`KLDRO` where hard rows are so rare that small batches have few of them or none. Not where
    labels are noisy: wrongly labelled rows are hard too, and would count most.

    Papers: sow2024doubly

    >>> weights = CompositionalEMA(momentum=0.5)
    >>> weights(torch.zeros(2)), weights(torch.full((2,), 1.0)).round(decimals=3)
    (tensor([1., 1.]), tensor([1.4620, 1.4620]))
    """

    papers = ("sow2024doubly",)
    helps = ("worst case", "hard examples", "imbalance")
    settings = ({"momentum": 0.9}, {"momentum": 0.3}, {"momentum": 0.9, "temperature": 0.5})
    couples_batch = True

    log_u: Tensor

    def __init__(self, temperature: float | Tensor = 1.0, momentum: float | Tensor = 0.9) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.momentum = check_between("momentum", momentum, 0, 1, open_low=True)
        self.log_u = torch.full((), -math.inf, dtype=torch.float64)

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of these rows, after this batch has moved the normaliser."""
        check_losses(losses)
        if not len(losses):
            return losses.detach().clone()
        scaled = losses.detach().double() / self.temperature
        now = scaled.logsumexp(dim=0) - math.log(len(losses))
        share = number_like(scaled, self.momentum)
        moved = torch.logaddexp((1 - share).log() + self.log_u, share.log() + now)
        first = self.log_u.isinf()
        log_u = torch.where(first, now, moved if self.training else self.log_u)
        if self.training:
            self.log_u = log_u.detach().to(self.log_u.dtype)
        return self._given((scaled - log_u).exp(), losses)


class KLDRORisk(Part):
    r"""KL-DRO risk: the worst-case value of a batch's losses, differentiable, between their mean and the largest.

    .. math:: r \log \tfrac1n \sum_i e^{\ell_i / r}

    Its gradient in the losses is :math:`w_i / n` of :class:`KLDRO`. When a batch is split over ranks, give it the
    losses of all ranks, as :func:`lossworks.distributed.gather_rows` returns them.

    Args:
        r: The price of the distance from uniform, in loss units, > 0.

    Shape:
        - losses: ``(n,)``, n >= 1; returns ``()``.

    Raises:
        ValueError: ``r <= 0``, no rows; a loss that is NaN or infinite (the error names its row).

    Use it where the worst-case value itself is wanted, as for early stopping, and not the mean of the weighted losses.
    Not where labels are noisy: the value is then that of wrongly labelled rows.

    Papers: sow2024doubly

    >>> KLDRORisk(1.0)(torch.tensor([2.0, 2.0]))
    tensor(2.)
    """

    papers = ("sow2024doubly",)
    helps = ("worst case",)
    couples_batch = True

    def __init__(self, r: float | Tensor = 1.0) -> None:
        super().__init__()
        self.r = check_positive("r", r)

    def forward(self, losses: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The robust value of these losses."""
        check_losses(losses, empty=False)
        losses = wide(losses)
        return self.r * ((losses / self.r).logsumexp(dim=0) - math.log(len(losses)))


@cite("sow2024doubly", helps=("worst case",))
def kl_dro_weights(
    losses: Float[Tensor, " n"], r: float | Tensor, base: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    r"""KL-DRO weights as shares of 1: the worst distribution over the rows, with a price on its distance from ``base``.

    .. math:: q_i = \frac{b_i\, e^{\ell_i / r}}{\sum_j b_j\, e^{\ell_j / r}}

    Args:
        losses: ``(n,)``, one loss a row.
        r: The price on the KL divergence from ``base``, in loss units, > 0.
        base: b, ``(n,)``, shares >= 0 with the sum 1; uniform by default.

    Raises:
        ValueError: ``r <= 0``, no rows, shares that don't match or don't sum to 1; a loss that is NaN or infinite.

    Papers: sow2024doubly

    >>> kl_dro_weights(torch.tensor([1.0, 1.0]), 0.5, base=torch.tensor([0.25, 0.75]))
    tensor([0.2500, 0.7500])
    """
    check_losses(losses, empty=False)
    check_positive("r", r)
    scaled = wide(losses.detach()) / r
    if base is not None:
        check_floating("base", base)
        check_same_shape(losses, base, names=("losses", "base"))
        sure = 10 * torch.finfo(base.dtype).eps  # how far rounding the shares may put their sum from 1
        if readable(base) and not (
            bool((base >= 0).all()) and abs(float(base.detach().double().sum()) - 1) < max(1e-4, sure)
        ):
            raise ValueError(
                f"base must be shares >= 0 with the sum 1, got the sum {float(base.detach().double().sum()):g}"
            )
        scaled = scaled + base.to(scaled.dtype).log()
    return scaled.softmax(dim=0)
