"""Certified training losses: cross-entropy of the worst output that proved bounds allow."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lossworks.certify.bounds import Region, Statistics, combined, crown_bounds, intervals
from lossworks.certify.graph import graph_of
from lossworks.checks import check_between, check_choice, check_classes, check_int, check_positive, readable
from lossworks.roles import cite

__all__ = ["SmoothedEpsilonSchedule", "certified_cross_entropy", "fused_certified_cross_entropy"]


@cite("xu2020autolirpa", helps=("attacks", "worst case"))
def certified_cross_entropy(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"],
    eps: float | Tensor,
    *,
    kappa: float = 0.0,
    box: Sequence[Tensor] | None = None,
    statistics: str = "running",
) -> Float[Tensor, " n"]:
    r"""Certified cross-entropy (CROWN-IBP): an upper bound on each row's cross-entropy over all inputs in the ball.

    .. math::
        \ell_i = \log\Big(1 + \sum_{j \ne y} e^{-m_j}\Big), \qquad
        m = \kappa\, m^{CROWN\text{-}IBP} + (1 - \kappa)\, m^{IBP}, \qquad m_j \le \min (f_y - f_j)

    Args:
        model: As in :func:`crown_bounds`, with one logit per class.
        x: The ball's centre.
        target: :math:`y`, int64.
        eps: The radius of the linf ball, in x's units, >= 0.
        kappa: The share of the linear relaxation, in [0, 1]; 0 trains by intervals alone. Usually it falls from 1 to 0
            as the radius grows.
        box: ``(low, high)`` in place of the ball.
        statistics: As in :func:`interval_bounds`; ``"clean"`` is for intervals alone, ``kappa=0``.

    Shape:
        - x ``(n, ...)``, target ``(n,)``; returns ``(n,)``, with gradients.

    Raises:
        ValueError: numbers out of range, layers in training mode, a class out of range.
        TypeError: a layer that is not known.

    Use its mean as the training loss, with a radius that grows from 0 (:class:`SmoothedEpsilonSchedule`). It costs
    clean accuracy: training with :class:`lossworks.perturb.PGD` costs less, but proves nothing.

    Papers: xu2020autolirpa

    >>> model = nn.Linear(2, 2)
    >>> x, y = torch.ones(3, 2), torch.tensor([0, 1, 0])
    >>> plain = nn.functional.cross_entropy(model(x), y, reduction="none")
    >>> bool((certified_cross_entropy(model, x, y, 0.1) >= plain).all())
    True
    """
    return F.cross_entropy(
        worst_logits(model, x, target, eps, kappa=kappa, box=box, statistics=statistics), target, reduction="none"
    )


def worst_logits(
    model: nn.Module,
    x: Tensor,
    target: Int[Tensor, " n"],
    eps: float | Tensor,
    *,
    kappa: float | Tensor = 0.0,
    box: Sequence[Tensor] | None = None,
    statistics: str = "running",
) -> Float[Tensor, "n classes"]:
    """Logits with each margin at its bound: 0 for the target, and for every other class the most it can lead by."""
    check_between("kappa", kappa, 0, 1)
    check_choice("statistics", statistics, ("running", "clean"))
    graph = graph_of(model)
    found = intervals(graph, Region.of(x, eps, box=box), cast(Statistics, statistics))
    _check_logits(found[-1][0], target)
    eye = torch.eye(found[-1][0].shape[1], dtype=found[-1][0].dtype, device=target.device)
    spec = eye[target][:, None] - eye
    margins, _ = combined(graph, spec, found)
    if (isinstance(kappa, Tensor) and not readable(kappa)) or kappa > 0:
        low, _ = crown_bounds(model, x, eps, box=box, spec=spec, method="crown-ibp", upper=False)
        margins = kappa * low + (1 - kappa) * margins
    return -margins


def _check_logits(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2:
        raise ValueError(f"model must give logits of shape (n, C), got {tuple(logits.shape)}")
    check_classes(logits, target)


@cite("xu2020autolirpa", helps=("attacks", "worst case", "many classes"))
def fused_certified_cross_entropy(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"],
    eps: float | Tensor,
    *,
    box: Sequence[Tensor] | None = None,
) -> Float[Tensor, " n"]:
    r"""Fused certified cross-entropy: a bound on each row's worst loss by one backward pass for any number of classes.

    .. math::
        \ell_i = \log \overline{S}, \qquad S = \sum_j e^{f_j - f_y} \le \sum_j \big(k_j (f_j - f_y) + c_j\big)

    where :math:`k_j, c_j` are the chord of the exponential over each margin's interval. The right side is one linear
    function of the outputs, which is bounded by passing it from the output to the input.

    Args:
        model: As in :func:`crown_bounds`, with one logit per class.
        x: The ball's centre.
        target: :math:`y`, int64.
        eps: The radius of the linf ball, in x's units, >= 0.
        box: ``(low, high)`` in place of the ball.

    Shape:
        - x ``(n, ...)``, target ``(n,)``; returns ``(n,)``, with gradients.

    Raises:
        ValueError: numbers out of range, layers in training mode, a class out of range.
        TypeError: a layer that is not known.

    Use it in place of :func:`certified_cross_entropy` where there are many classes. Where the
    margins' intervals are wide, its chords are loose, so start with a small radius.

    Papers: xu2020autolirpa

    >>> fused_certified_cross_entropy(nn.Linear(2, 3), torch.ones(4, 2), torch.tensor([0, 1, 2, 0]), 0.1).shape
    torch.Size([4])
    """
    graph = graph_of(model)
    low, high = intervals(graph, Region.of(x, eps, box=box))[-1]
    _check_logits(low, target)
    own = F.one_hot(target, low.shape[1]).bool()
    least = torch.where(own, 0.0, low - high.gather(1, target[:, None]))
    most = torch.where(own, 0.0, high - low.gather(1, target[:, None]))
    top = most.amax(dim=1, keepdim=True).detach()
    below, above = (least - top).exp(), (most - top).exp()
    width = most - least
    narrow = width < 1e-6
    # A line through the upper end with any slope from that of the lower end upwards lies above the curve.
    slope = torch.where(narrow, below, (above - below) / torch.where(narrow, 1.0, width))
    constant = (above - slope * most).sum(dim=1)
    spec = (slope - own * slope.sum(dim=1, keepdim=True))[:, None]
    _, high_sum = crown_bounds(model, x, eps, box=box, spec=spec, method="crown-ibp")
    total = high_sum[:, 0] + constant
    return total.clamp(min=torch.finfo(total.dtype).tiny).log() + top[:, 0]


class SmoothedEpsilonSchedule:
    r"""Smoothed radius schedule: the radius grows slowly at first, then linearly, with a continuous slope.

    .. math::
        \varepsilon_s = \begin{cases} \alpha (s - s_0)^\beta & s < s_m \\
        \alpha (s_m - s_0)^\beta + \alpha \beta (s_m - s_0)^{\beta - 1} (s - s_m) & s_m \le s \le s_1 \end{cases},
        \qquad \varepsilon_{s_1} = \varepsilon_{max}

    Args:
        eps_max: The final radius, >= 0.
        start: :math:`s_0`, the fraction of the training up to which the radius is 0, in [0, 1).
        end: :math:`s_1`, the fraction from which the radius is ``eps_max``, above ``start`` and at most 1.
        middle: Where between ``start`` and ``end`` the curve becomes a line, in (0, 1).
        beta: How slowly the radius begins to grow, an int >= 1.

    Raises:
        ValueError: numbers out of range.

    Use it in certified training, and call :meth:`set_progress` as for every part with a schedule.

    Papers: xu2020autolirpa

    >>> schedule = SmoothedEpsilonSchedule(0.1, start=0.0, end=0.5)
    >>> schedule(0.0), schedule(0.5), schedule(1.0)
    (0.0, 0.1, 0.1)
    """

    papers = ("xu2020autolirpa",)
    helps = ("attacks",)

    def __init__(
        self, eps_max: float, *, start: float = 0.0, end: float = 0.5, middle: float = 0.25, beta: int = 4
    ) -> None:
        self.eps_max = check_positive("eps_max", eps_max, allow_zero=True)
        self.start = check_between("start", start, 0, 1, open_high=True)
        self.end = check_between("end", end, start, 1, open_low=True)
        self.middle = check_between("middle", middle, 0, 1, open_low=True, open_high=True)
        self.beta = check_int("beta", beta, low=1)
        self.eps = self(0.0)

    def __call__(self, fraction: float) -> float:
        """The radius at this fraction of the training."""
        check_between("fraction", fraction, 0, 1)
        if fraction >= self.end:
            return self.eps_max
        turn = self.start + self.middle * (self.end - self.start)
        curved = turn - self.start
        # Chosen so that both value and slope agree at the turn, and the line ends at eps_max.
        whole = curved + self.beta * (self.end - turn)
        if fraction < turn:
            return self.eps_max * curved / whole * (max(fraction - self.start, 0.0) / curved) ** self.beta
        return self.eps_max * (curved + self.beta * (fraction - turn)) / whole

    def set_progress(self, fraction: float) -> None:
        """Store the radius at this fraction of the training as ``eps``."""
        self.eps = self(fraction)
