"""The worst input when moving has a price: the inner problem of Wasserstein-robust risk."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_batch, check_choice, check_function, check_int, check_positive, check_real, taken
from lossworks.perturb.inference import ordinary
from lossworks.perturb.pgd import Risk, _one_a_row, _slope, _value
from lossworks.roles import Perturbation, cite

__all__ = ["PricedAscent", "wasserstein_robust_surrogate"]

COSTS = ("sq_l2", "l2")


class PricedAscent(Perturbation):
    r"""Wasserstein robust training: finds the input with the highest loss less a price on how far it has moved.

    .. math::
        \max_z \; \ell(z) - \gamma\, c(z, x), \qquad
        z^{t+1} = z^t + \tfrac{\alpha}{\sqrt{t + 1}} \nabla_z \big(\ell(z^t) - \gamma\, c(z^t, x)\big)

    Each row keeps the best point met (the later one of two equal points), the clean input included, so a row's risk is
    at least its clean risk plus the price of its move. A batch that is split gives the same points (with ``"l2"``,
    whose gradient jumps at x, the same up to rounding, which the ascent amplifies). It costs ``steps`` forward and
    backward passes and two forward passes.

    Args:
        gamma: The price :math:`\gamma` of a unit of cost, in loss units, > 0. A larger price keeps the point nearer.
        cost: ``"sq_l2"``, the squared Euclidean distance, or ``"l2"``, the distance.
        steps: How many steps to take, >= 1.
        lr: The step size :math:`\alpha`, in squared input units per loss unit, > 0; by default :math:`1 / 2\gamma` for
            ``"sq_l2"``, which is exact in one step for a linear risk, and :math:`1 / \gamma^2` for ``"l2"``.

    Shape:
        - x: ``(n, ...)`` floating-point; returns the same shape and dtype, without a graph.

    Raises:
        ValueError: ``gamma <= 0``, ``lr <= 0``, ``steps < 1``, an unknown cost, or a risk not of one number per row.
        TypeError: x is not floating-point.

    Use it where inputs will be shifted by an amount that no fixed radius describes: each row moves as far as pays. It
    needs :math:`\gamma` above the risk's curvature (``"sq_l2"``) or slope (``"l2"``), or a bounded loss; otherwise the
    maximum is far away and the ascent ends with its last step. Against changes up to a known size use :class:`PGD`.

    Papers: sinha2018certifying, saberi2024outofdomain

    >>> PricedAscent(gamma=0.5)(lambda z: z.sum(1), torch.zeros(1, 2))
    tensor([[1., 1.]])
    """

    papers = ("sinha2018certifying", "saberi2024outofdomain")
    helps = ("attacks", "shift")
    begins_at_input = True
    settings = ({}, {"gamma": 10.0})
    modes = ({"cost": "l2"},)

    def __init__(
        self,
        gamma: float | Tensor = 1.0,
        cost: str = "sq_l2",
        steps: int = 15,
        lr: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.gamma = check_positive("gamma", gamma)
        self.cost = check_choice("cost", cost, COSTS)
        self.steps = check_int("steps", steps, low=1)
        self.lr = None if lr is None else check_positive("lr", lr)

    def forward(self, risk: Risk, x: Float[Tensor, "n *features"]) -> Float[Tensor, "n *features"]:
        """The best point found for each row."""
        return self.ascend(risk, x, self.gamma)

    def ascend(
        self, risk: Risk, x: Float[Tensor, "n *features"], gamma: float | Tensor
    ) -> Float[Tensor, "n *features"]:
        """The best point found for each row at this price, which is one number or one number per row."""
        check_batch("x", x)
        x = ordinary(x)
        clean = x.detach()

        def gain(z: Tensor) -> Tensor:
            return risk(z) - gamma * transport_cost(z, clean, self.cost)

        lr = (0.5 / gamma if self.cost == "sq_l2" else 1 / gamma / gamma) if self.lr is None else self.lr
        if isinstance(lr, Tensor) and lr.ndim:
            lr = lr.reshape(-1, *(1 for _ in x.shape[1:]))
        start = _value(gain, clean)
        changed, best, highest = clean, clean, start
        for step in range(1, self.steps + 1):
            gradient, values = _slope(gain, changed)
            best, highest = _no_worse(changed, values, best, highest)
            changed = changed + (lr * step**-0.5 * gradient).to(x.dtype)
            # A step that is too long for the risk may overflow; the row then starts again at its clean input.
            changed = torch.where(changed.isfinite(), changed, clean)
        best, highest = _no_worse(changed, _value(gain, changed), best, highest)
        return _rows_where(highest > start, best, clean)


def _no_worse(changed: Tensor, values: Tensor, best: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the later point, unless it is worse by more than rounding, which means nothing near a maximum."""
    slack = 64 * torch.finfo(values.dtype).eps * (1 + highest.abs())
    later = values >= highest - slack
    return _rows_where(later, changed, best), torch.where(later, values, highest)


def _rows_where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.reshape(len(chosen), *(1 for _ in one.shape[1:])), one, other)


def transport_cost(
    z: Float[Tensor, "n *features"], x: Float[Tensor, "n *features"], cost: str = "sq_l2"
) -> Float[Tensor, " n"]:
    """Each row's squared Euclidean distance or, with ``"l2"``, its distance, whose gradient at z = x is taken as 0."""
    squared = (z - x)[..., None].flatten(1).square().sum(dim=1)
    if cost == "sq_l2":
        return squared
    moved = squared > 0
    return torch.where(moved, torch.where(moved, squared, 1).sqrt(), 0)


@cite("sinha2018certifying", "saberi2024outofdomain", helps=("shift", "worst case"))
def wasserstein_robust_surrogate(
    loss_fn: Callable[[Tensor, Tensor], Float[Tensor, " n"]],
    x: Float[Tensor, "n *features"],
    y: Tensor,
    gamma: float | Tensor = 1.0,
    cost: str = "sq_l2",
    steps: int = 15,
    lr: float | Tensor | None = None,
) -> Float[Tensor, " n"]:
    r"""Wasserstein robust loss of each row, :math:`\phi_\gamma(x, y) = \sup_z \ell(z, y) - \gamma\, c(z, x)`.

    Its mean plus :math:`\gamma \rho` bounds the risk under every distribution within Wasserstein distance :math:`\rho`
    of the data, as far as the ascent finds the supremum. The robust loss is at least the loss, and approaches the loss
    as :math:`\gamma` grows. Its gradient with respect to the model is that of the loss at the point found (the envelope
    theorem).

    Args:
        loss_fn: A function from inputs and targets to one loss per row, differentiable in the inputs.
        x: The inputs ``(n, ...)``, floating-point.
        y: The targets, passed on to ``loss_fn``.
        gamma: The price of a unit of cost, in loss units, > 0.
        cost: ``"sq_l2"``, the squared Euclidean distance, or ``"l2"``, the distance.
        steps: The number of ascent steps, see :class:`PricedAscent`.
        lr: The step size of the ascent, see :class:`PricedAscent`.

    Returns:
        One robust loss per row, ``(n,)``.

    Raises:
        ValueError: ``gamma <= 0``, ``lr <= 0``, ``steps < 1``, an unknown cost, a loss not of one number per row.
        TypeError: x is not floating-point, ``loss_fn`` is no function.

    Papers: sinha2018certifying, saberi2024outofdomain

    >>> wasserstein_robust_surrogate(lambda z, y: y * z[:, 0], torch.zeros(1, 2), torch.ones(1), gamma=0.5)
    tensor([0.5000])
    """
    check_function("loss_fn", loss_fn, "inputs and targets")

    def losses(z: Tensor) -> Tensor:
        with taken("loss_fn must take x and y"):
            values = loss_fn(z, y)
        check_real("what loss_fn gives for x and y", values)
        return _one_a_row(values, z, "loss_fn")

    worst = PricedAscent(gamma, cost, steps, lr)(losses, x)
    return losses(worst) - gamma * transport_cost(worst, x.detach(), cost)
