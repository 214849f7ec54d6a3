"""Lipschitz regression: the fitted function provably never changes faster than a given slope."""

import math
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import as_float, check_floating, check_positive
from lossworks.roles import cite

__all__ = ["LipschitzRegressor", "empirical_lipschitz_constant", "lipschitz_constraint_projection"]

TOLERANCE = 1e-9
"""The solver stops at this gap to the least squared distance, relative to the values' squared spread."""
GROWTH = 20.0
NARROWEST = 1e-12
"""The least allowed distance of two values, relative to the spread of all; below it rounding hides the difference."""


@cite("makdah2021lipschitz", helps=("attacks",))
def empirical_lipschitz_constant(x: Float[Tensor, "N n"], target: Float[Tensor, "N *m"]) -> Float[Tensor, ""]:
    r"""Empirical Lipschitz constant: the steepest slope between any two rows.

    .. math:: \max_{i \ne j} \frac{\lVert u_i - u_j \rVert_2}{\lVert x_i - x_j \rVert_2}

    It is the smallest Lipschitz constant of any function that passes through all rows.

    Args:
        x: The inputs ``(N, n)``.
        target: The values at these inputs, ``(N,)`` or ``(N, m)``.

    Returns:
        ``()``, >= 0, float64; infinite where equal inputs have different values, 0 for one row.

    Raises:
        ValueError: shapes that don't match, no rows, numbers that are not finite.
        TypeError: not floating-point.

    Papers: makdah2021lipschitz

    >>> empirical_lipschitz_constant(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.0, 2.0, 2.0]))
    tensor(2., dtype=torch.float64)
    """
    points, values = _rows(x, target)
    apart, risen = _distances(points), _distances(values)
    return torch.where(risen > 0, risen / apart, 0.0).max()


@cite("makdah2021lipschitz", helps=("attacks",))
def lipschitz_constraint_projection(
    x: Float[Tensor, "N n"], target: Float[Tensor, "N *m"], lipschitz: float
) -> Float[Tensor, "N *m"]:
    r"""Project values onto the Lipschitz constraint: the nearest values that nowhere change faster than a given slope.

    .. math::
        \min_v \; \sum_i \lVert u_i - v_i \rVert^2 \quad \text{subject to} \quad
        \lVert v_i - v_j \rVert \le \alpha \lVert x_i - x_j \rVert \;\; \text{for all } i, j

    The problem is convex and is solved by a barrier method, so all pairs satisfy the constraint strictly, and the
    squared distance is optimal to 1e-9 of the values' squared distance to their mean. Each step solves a linear system
    in a weighted Laplacian of the rows. It takes about a hundred steps of :math:`(N m)^3` operations, so use it for up
    to a thousand rows. Rows of equal x get the same value.

    Args:
        x: The inputs ``(N, n)``.
        target: The values u, ``(N,)`` or ``(N, m)``.
        lipschitz: :math:`\alpha`, in units of the target over units of x, >= 0.

    Returns:
        v in the target's shape and dtype, computed in float64, without a gradient; the mean if ``lipschitz=0``.

    Raises:
        ValueError: shapes that don't match, no rows, numbers that are not finite, ``lipschitz < 0``, or inputs so close
            to each other (a part in 1e12 of the target's spread over ``lipschitz``) that the constraint is below
            rounding, or so far apart that it overflows.
        TypeError: not floating-point.

    Papers: makdah2021lipschitz

    >>> lipschitz_constraint_projection(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 3.0]), 1.0)
    tensor([1., 2.])
    """
    check_positive("lipschitz", lipschitz, allow_zero=True)
    points, values = _rows(x, target)
    places, which = torch.unique(points + 0.0, dim=0, return_inverse=True)
    weight = torch.zeros(len(places), dtype=torch.float64, device=points.device)
    weight.index_add_(0, which, torch.ones_like(points[:, 0]))
    wanted = torch.zeros(len(places), values.shape[1], dtype=torch.float64, device=points.device)
    wanted.index_add_(0, which, values)
    wanted = wanted / weight[:, None]
    found = _nearest(wanted, weight, as_float(lipschitz) * _distances(places))
    return found[which].reshape(target.shape).to(target.dtype)


class LipschitzRegressor(nn.Module):
    r"""Lipschitz regression: least squares over all functions whose slope is at most a given one, a proved bound.

    .. math::
        \min_{\pi \,:\, \mathrm{Lip}(\pi) \le \alpha} \; \sum_i \lVert u_i - \pi(x_i) \rVert^2, \qquad
        \pi(x) = \tfrac12 \max_i \big(v_i - \alpha \lVert x - x_i \rVert\big)
            + \tfrac12 \min_i \big(v_i + \alpha \lVert x - x_i \rVert\big)

    Only the values :math:`v_i` at the rows are fitted (:func:`lipschitz_constraint_projection`). Between the rows the
    function is the mean of the least and the greatest function with that slope that pass through them. A change of the
    input by :math:`\varepsilon` changes the output by at most :math:`\alpha \varepsilon`, everywhere. With m outputs
    each one is fitted with slope :math:`\alpha / \sqrt m`, so that all together keep :math:`\alpha`.

    Args:
        lipschitz: :math:`\alpha`, in units of the target over units of x, >= 0; try several.

    Attributes:
        points: ``(N, n)``, a buffer: the inputs of the fit; empty until fitted.
        values: ``(N,)`` or ``(N, m)``, a buffer: the fitted values at these inputs.

    Shape:
        - x: ``(rows, n)`` floating-point; returns ``(rows,)`` or ``(rows, m)``, as the target was.

    Raises:
        ValueError: ``lipschitz < 0``, x of another width than in the fit, or a prediction before the fit.
        TypeError: not floating-point.

    Use it for feedback policies and other maps with few inputs, fitted to up to a thousand rows. A prediction computes
    the distance to every fitted row. A steeper function follows the rows more closely, and amplifies a disturbance
    more.

    Papers: makdah2021lipschitz

    >>> policy = LipschitzRegressor(1.0).fit(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 3.0]))
    >>> policy.predict(torch.tensor([[0.0], [0.5], [1.0]]))
    tensor([1.0000, 1.5000, 2.0000])
    """

    papers: ClassVar[tuple[str, ...]] = ("makdah2021lipschitz",)
    helps: ClassVar[tuple[str, ...]] = ("attacks",)
    settings: ClassVar[tuple[dict[str, float], ...]] = ({"lipschitz": 1.0},)

    points: Tensor
    values: Tensor

    def __init__(self, lipschitz: float) -> None:
        super().__init__()
        self.lipschitz = check_positive("lipschitz", lipschitz, allow_zero=True)
        self.register_buffer("points", torch.zeros(0, 0))
        self.register_buffer("values", torch.zeros(0))

    def fit(self, x: Float[Tensor, "N n"], target: Float[Tensor, "N *m"]) -> Self:
        """Fit the values at these rows; return the regressor itself."""
        _rows(x, target)
        each = self._slope(target)
        columns = target.reshape(len(target), -1).unbind(dim=1)
        found = torch.stack([lipschitz_constraint_projection(x, column, each) for column in columns], dim=1)
        self.points, self.values = x.detach().clone(), found.reshape(target.shape)
        return self

    def predict(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows *m"]:
        """The fitted function's values, with a gradient in x."""
        check_floating("x", x)
        if not len(self.points):
            raise ValueError("x can be asked about only after fit(x, target)")
        if x.ndim != 2 or x.shape[1] != self.points.shape[1]:
            raise ValueError(f"x must have shape (n, {self.points.shape[1]}) as it was fitted, got {tuple(x.shape)}")
        away = torch.cdist(x, self.points.to(x.dtype), compute_mode="donot_use_mm_for_euclid_dist")
        reach = self._slope(self.values) * away.reshape(*away.shape, *[1] * (self.values.ndim - 1))
        values = self.values.to(x.dtype)
        return ((values - reach).amax(dim=1) + (values + reach).amin(dim=1)) / 2

    def forward(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows *m"]:
        """The same as :meth:`predict`."""
        return self.predict(x)

    def extra_repr(self) -> str:
        """The slope, as shown in the repr."""
        return f"lipschitz={self.lipschitz}"

    def _slope(self, values: Tensor) -> float:
        """The slope that each output is given."""
        return as_float(self.lipschitz) / math.sqrt(values[0].numel())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("points", "values"):
            if prefix + name in state_dict:
                saved = state_dict[prefix + name]
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _rows(x: Tensor, target: Tensor) -> tuple[Float[Tensor, "N n"], Float[Tensor, "N m"]]:
    """Both in float64, the values with one column per output."""
    for name, tensor in (("x", x), ("target", target)):
        check_floating(name, tensor)
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite everywhere")
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"x must have shape (N, n) with N, n >= 1, got {tuple(x.shape)}")
    if target.ndim not in (1, 2) or target.shape[0] != len(x) or not target.numel():
        raise ValueError(f"target must have shape ({len(x)},) or ({len(x)}, m), got {tuple(target.shape)}")
    return x.detach().double(), target.detach().double().reshape(len(x), -1)


def _distances(points: Float[Tensor, "N n"]) -> Float[Tensor, "N N"]:
    # Distances from matrix products would lose the digits that tell near rows apart.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(wanted: Float[Tensor, "N m"], weight: Float[Tensor, " N"], most: Float[Tensor, "N N"]) -> Tensor:
    """The weighted projection onto values whose pairwise distances are at most ``most``."""
    mean = weight @ wanted / weight.sum()
    spread = float((weight @ (wanted - mean).square().sum(dim=1) / weight.sum()).sqrt())
    if not math.isfinite(spread):
        raise ValueError("target must not be so large that its squares overflow")
    if bool((_distances(wanted) <= most).all()):
        return wanted
    if not bool(most.any()):
        return mean.expand_as(wanted)
    between = ~torch.eye(len(wanted), dtype=torch.bool, device=wanted.device)
    least, greatest = (float(bound) for bound in (most / spread)[between].aminmax())
    if least < NARROWEST or greatest > 1 / NARROWEST:
        raise ValueError(
            f"x must differ by {NARROWEST:g} to {1 / NARROWEST:g} of the target's spread over lipschitz, got distances "
            f"from {least:g} to {greatest:g}"
        )
    scaled = _barrier((wanted - mean) / spread, weight, torch.where(between, most / spread, 1.0).square())
    return mean + spread * scaled


def _barrier(wanted: Float[Tensor, "N m"], weight: Float[Tensor, " N"], square: Float[Tensor, "N N"]) -> Tensor:
    """Minimise by Newton's method the squared distance less the logarithms of each pair's slack, whose weight falls.

    At the minimum for a price t of the distance, it is within pairs / t of the optimum (Boyd and Vandenberghe, 11.2).
    """
    rows, outputs = wanted.shape
    pairs = rows * (rows - 1) / 2
    eye = torch.eye(outputs, dtype=wanted.dtype, device=wanted.device)
    at = torch.zeros_like(wanted)
    price = pairs / float(weight.sum())

    def value(v: Tensor) -> float:
        left = square - (v[:, None] - v).square().sum(dim=2)
        if not bool((left > 0).all()):
            return math.inf
        return float(price * 0.5 * (weight @ (wanted - v).square().sum(dim=1)) - 0.5 * left.log().sum())

    while True:
        for _ in range(100):
            apart = at[:, None] - at
            left = square - apart.square().sum(dim=2)
            gradient = price * weight[:, None] * (at - wanted) + (2 * apart / left[:, :, None]).sum(dim=1)
            outer = apart[:, :, :, None] * apart[:, :, None, :]
            links = 2 * eye / left[:, :, None, None] + 4 * outer / left.square()[:, :, None, None]
            links.diagonal(dim1=0, dim2=1).zero_()
            hessian = -links
            own = links.sum(dim=1) + price * weight[:, None, None] * eye
            hessian.diagonal(dim1=0, dim2=1).copy_(own.permute(1, 2, 0))
            matrix = hessian.permute(0, 2, 1, 3).reshape(rows * outputs, rows * outputs)
            matrix.diagonal().mul_(1 + 1e-12)
            step = -torch.linalg.solve(matrix, gradient.flatten()).view_as(at)
            fall = -float((gradient * step).sum())
            if not fall > 1e-7:
                break
            now, length = value(at), 1.0
            while not value(at + length * step) <= now - 0.1 * length * fall and length > 1e-9:
                length /= 2
            if length <= 1e-9:
                break
            at = at + length * step
        if pairs / price <= TOLERANCE * float(weight.sum()) / 2:
            return at
        price *= GROWTH
