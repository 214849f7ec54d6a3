"""Certified training: the loss is a proved bound on the cross-entropy under attack."""

import torch
from torch import Tensor, nn

from lossworks.certify.cross_entropy import SmoothedEpsilonSchedule, worst_logits
from lossworks.checks import check_between, check_choice, check_positive, check_tensor
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective

__all__ = ["CertifiedCrossEntropyObjective"]


class CertifiedCrossEntropyObjective(Objective):
    r"""Certified training (CROWN-IBP): minimises a proved bound on each row's cross-entropy over all inputs in a ball.

    .. math::
        \ell_i = \log\Big(1 + \sum_{j \ne y} e^{-m_j}\Big), \qquad
        m = \kappa\, m^{CROWN\text{-}IBP} + (1 - \kappa)\, m^{IBP}, \qquad
        m_j \le \min_{\|\delta\|_\infty \le \varepsilon} (f_y - f_j)(x + \delta)

    :meth:`set_progress` makes the radius grow over training (:class:`~lossworks.certify.SmoothedEpsilonSchedule`), and
    :math:`\kappa` move from ``kappa_start`` to ``kappa_end`` with it. An objective whose progress is never set uses the
    full radius and ``kappa_end``. Call it like any :class:`~lossworks.Objective`.

    Args:
        eps: The final radius of the linf ball, in the input's units, >= 0.
        kappa_start: :math:`\kappa` at radius 0, in [0, 1]: the share of the linear relaxation.
        kappa_end: :math:`\kappa` at the full radius, in [0, 1]; 0 trains by intervals alone, which is the cheapest.
        warmup: The share of the training in which the radius grows, in (0, 1].
        statistics: ``"running"`` refuses batch normalisation in training mode. ``"clean"`` uses the batch's statistics
            at x itself, and works for intervals alone; each micro-batch or rank then has its own statistics.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The target of rows that are left out.

    Shape:
        - model: from x to logits ``(n, C)``, made of layers that :func:`~lossworks.certify.crown_bounds` knows; x is
          ``(n, ...)``, target classes ``(n,)``, int64. Returns ``()``, or ``(n,)`` with ``reduction="none"``.

    Raises:
        ValueError: numbers out of range, ``statistics="clean"`` with a relaxation, a class outside ``[0, C)``, layers
            in training mode.
        TypeError: a layer that is not known; the error names it and says what to do.

    Use it where robustness must be proved, after :func:`~lossworks.certify.ibp_init_` and with a radius that grows. It
    costs clean accuracy; training with :class:`~lossworks.perturb.PGD` costs less but proves nothing. A model wrapped
    for several processes can't be traced: average the gradients by hand, or give ``process_group``.

    Papers: xu2020autolirpa

    >>> objective = CertifiedCrossEntropyObjective(0.1)
    >>> objective(nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("xu2020autolirpa",)
    helps = ("attacks", "worst case")
    settings = ({"eps": 0.1}, {"eps": 0.1, "kappa_end": 0.5})
    modes = ({"eps": 0.1, "statistics": "clean", "kappa_start": 0.0, "kappa_end": 0.0},)
    loss: CrossEntropyLoss
    radius: Tensor
    kappa: Tensor

    def __init__(
        self,
        eps: float,
        kappa_start: float = 1.0,
        kappa_end: float = 0.0,
        warmup: float = 0.5,
        *,
        statistics: str = "running",
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(CrossEntropyLoss(reduction=reduction, ignore_index=ignore_index))
        check_between("warmup", warmup, 0, 1, open_low=True)
        self.eps = check_positive("eps", eps, allow_zero=True)
        self.schedule = SmoothedEpsilonSchedule(self.eps, end=warmup)
        self.kappa_start = check_between("kappa_start", kappa_start, 0, 1)
        self.kappa_end = check_between("kappa_end", kappa_end, 0, 1)
        self.statistics = check_choice("statistics", statistics, ("running", "clean"))
        if statistics == "clean" and (kappa_start or kappa_end):
            raise ValueError('statistics="clean" is for intervals alone: kappa_start and kappa_end must be 0')
        self.register_buffer("radius", torch.tensor(float(eps), dtype=torch.float64))
        self.register_buffer("kappa", torch.tensor(float(kappa_end), dtype=torch.float64))

    def set_progress(self, fraction: float) -> None:
        """Set the radius and the share of the relaxation to those of this fraction of the training."""
        radius = self.schedule(fraction)
        grown = radius / self.eps if self.eps > 0 else 1.0
        self.radius = torch.full_like(self.radius, radius)
        self.kappa = torch.full_like(self.kappa, self.kappa_start + (self.kappa_end - self.kappa_start) * grown)

    def _outputs(self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor) -> tuple[Tensor, None]:
        kappa = self.kappa if self.kappa_start or self.kappa_end else 0.0
        check_tensor("target", target)
        target = self._classes(target)
        return worst_logits(model, x, target, self.radius, kappa=kappa, statistics=self.statistics), None
