"""Balls around the input: a projected input lies in the ball and in the data's range exactly, despite rounding."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_batch, check_choice, check_positive, readable, shown

__all__ = ["Ball", "Bounds", "check_ball", "draw_normal", "row_norm"]

NORMS = ("linf", "l2")
_SHRINK = 8
"""How many units of rounding an l2 change is made shorter than the radius, so that rounding cannot make it longer."""

Bounds = Sequence[float | Tensor]


class Ball:
    """The set of all inputs at a distance of at most ``eps`` from ``x`` that lie within the data's range.

    Args:
        x: The centre, ``(n, ...)`` floating-point.
        eps: The radius in x's units, >= 0.
        norm: ``"linf"``, the largest change of any coordinate, or ``"l2"``, the Euclidean length of the row's change.
        bounds: The data's range ``(low, high)``, numbers or tensors that broadcast to x.

    Raises:
        TypeError: x is not floating-point.
        ValueError: x does not lie in ``bounds``.
    """

    def __init__(
        self, x: Tensor, eps: float | Tensor, norm: str = "linf", bounds: Bounds = (-torch.inf, torch.inf)
    ) -> None:
        check_batch("x", x)
        self.x, self.norm = x.detach(), norm
        self.eps = _rounded_down(eps, self.x)
        self.low, self.high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in bounds)
        _check_within(self.x, self.low, self.high)
        if norm == "linf":
            reach = self.eps.expand_as(self.x)
            self.low = torch.maximum(self.low, _add_towards(self.x, -reach))
            self.high = torch.minimum(self.high, _add_towards(self.x, reach))

    def project(self, changed: Float[Tensor, "n *features"]) -> Float[Tensor, "n *features"]:
        """The nearest input that lies in the ball (for l2, or just inside it) and within the range."""
        if self.norm == "linf":
            return torch.minimum(torch.maximum(changed, self.low), self.high)
        change = torch.minimum(torch.maximum(changed, self.low), self.high) - self.x
        inside = 1 - _SHRINK * torch.finfo(change.dtype).eps
        length = row_norm(change)
        change = change * torch.where(length > inside * self.eps, inside * self.eps / length, 1)
        # Clamping only brings a coordinate nearer to x's, which is in the range, so it cannot leave the ball again.
        return torch.minimum(torch.maximum(_add_towards(self.x, change), self.low), self.high)

    def start(self, generator: torch.Generator | None) -> Float[Tensor, "n *features"]:
        """An input drawn uniformly from the ball, brought into the range."""
        x = self.x
        if self.norm == "linf":
            return self.project(x + self.eps * (2 * _uniform(x, generator) - 1))
        normal = draw_normal(x, generator)
        radius = _uniform(x.new_empty(_column(x)), generator) ** (1 / max(x[:1].numel(), 1))
        return self.project(x + normal * (self.eps * radius / row_norm(normal)))

    def steepest(self, gradient: Float[Tensor, "n *features"]) -> Float[Tensor, "n *features"]:
        """The direction of length 1, in this norm, in which a function with this gradient grows fastest."""
        if self.norm == "linf":
            return torch.where(gradient.isnan(), 0, gradient.sign())
        length = row_norm(gradient)
        finite = (gradient.isfinite() & length.isfinite()).flatten(1).all(dim=1).reshape(_column(gradient))
        return torch.where(finite, gradient / length, _limit(gradient))


def check_ball(eps: float | Tensor, norm: str, bounds: Bounds | None) -> None:
    """Raise unless these describe a ball: ``eps >= 0``, a known norm, and two bounds or none."""
    check_positive("eps", eps, allow_zero=True)
    check_choice("norm", norm, NORMS)
    if bounds is None:
        return
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high), got {shown(bounds)}")
    for bound in bounds:
        if not isinstance(bound, (int, float, Tensor)):
            raise TypeError(f"bounds must hold two numbers or tensors, got {type(bound).__name__} in it")
    low, high = (torch.as_tensor(bound) for bound in bounds)
    if readable(low) and readable(high) and not bool((low <= high).all()):
        raise ValueError(f"bounds must have low <= high, got {shown(bounds)}")


def row_norm(x: Float[Tensor, "n *features"]) -> Float[Tensor, "n *ones"]:
    """Each row's Euclidean norm, or 1 where that is 0, in a shape that broadcasts to x."""
    flat = x.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True) if flat.shape[1] else flat.new_zeros(len(flat), 1)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))  # the squares of what is left cannot overflow
    norm = largest * (flat / largest).square().sum(dim=1, keepdim=True).sqrt()
    return torch.where(norm > 0, norm, torch.ones_like(norm)).reshape(_column(x))


def draw_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of this tensor's shape and dtype, on its device."""
    if generator is None:
        return torch.randn_like(like)
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _limit(gradient: Tensor) -> Tensor:
    """The direction of each row where it has no finite length: of its infinite slopes alone, and without the NaN."""
    finite = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    infinite = torch.where(gradient.isinf(), gradient.sign(), 0)
    size = finite.flatten(1).abs().amax(dim=1).reshape(_column(gradient)) if gradient[:1].numel() else 1
    scaled = finite / torch.where(torch.as_tensor(size) > 0, size, 1)
    any_infinite = infinite.flatten(1).any(dim=1).reshape(_column(gradient))
    direction = torch.where(any_infinite, infinite, scaled)
    return direction / row_norm(direction)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.rand_like(like)
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _column(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], *(1 for _ in x.shape[1:]))


def _rounded_down(eps: float | Tensor, x: Tensor) -> Tensor:
    """The largest number of x's dtype that is at most ``eps``."""
    exact = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
    near = exact.to(x.dtype)
    return torch.where(near.double() > exact, torch.nextafter(near, torch.zeros_like(near)), near).clamp(min=0)


def _add_towards(x: Tensor, change: Tensor) -> Tensor:
    """``x + change``, rounded towards x, so that the result is no further from x than ``change`` is long."""
    total = x + change
    part = total - x  # Knuth's exact sum: total + error is x + change without rounding
    error = (x - (total - part)) + (change - part)
    beyond = torch.where(change > 0, error < 0, error > 0)
    return torch.where(beyond, torch.nextafter(total, x), total)


def _check_within(x: Tensor, low: Tensor, high: Tensor) -> None:
    if readable(x) and not bool(((x >= low) & (x <= high)).all()):
        rows = ((x < low) | (x > high) | x.isnan())[..., None].flatten(1).any(dim=1).nonzero().flatten()
        raise ValueError(f"x must lie within bounds before it is changed, row {int(rows[0])} does not")
