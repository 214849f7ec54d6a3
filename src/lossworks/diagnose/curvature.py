"""The curvature of a trained model's mean loss, and linear systems of equations in it."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from lossworks.checks import (
    check_choice,
    check_floating,
    check_function,
    check_generator,
    check_int,
    check_positive,
    check_real,
    taken,
)

__all__: list[str] = []

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function from outputs and targets to one number per row."""

METHODS = ("exact", "cg", "lissa")
CURVATURES = ("gauss_newton", "hessian")
LARGEST_EXACT = 10_000
AT_ONCE = 2**24
"""How many numbers the gradients or directions that are computed together may have."""
POWER_STEPS = 20


class Curvature:
    """H, the mean over rows of the loss's second derivative in the trainable parameters, plus damping times I.

    Directions and gradients are rows ``(k, P)`` of float64; the model itself runs in its own precision.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        loss: Loss,
        *,
        damping: float | Tensor,
        curvature: str = "gauss_newton",
        batch_size: int = 256,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a module, got {type(model).__name__}")
        learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if not learned:
            raise ValueError("model must have parameters that require gradients, it has none")
        check_function("loss", loss, "outputs and targets")
        self.damping = float(check_positive("damping", damping))
        self.second = check_choice("curvature", curvature, CURVATURES) == "hessian"
        self.batch_size = check_int("batch_size", batch_size, low=1)
        self.model, self.loss, self.learned = model, loss, learned
        self.flat = torch.cat([p.flatten() for p in learned.values()])
        self.size = len(self.flat)
        self.x, self.target = self.checked("x", x, "target", target)

    def checked(self, x_name: str, x: Tensor, target_name: str, target: Tensor) -> tuple[Tensor, Tensor]:
        """The rows unchanged, or an error unless model and loss turn them into one finite number per row."""
        check_real(x_name, x)
        check_real(target_name, target)
        if x.ndim == 0 or not len(x):
            raise ValueError(f"{x_name} must have shape (n, ...) with n >= 1, got {tuple(x.shape)}")
        if target.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{target_name} must have a row for each of {x_name}, got {tuple(target.shape)} beside {tuple(x.shape)}"
            )
        for rows, labels in zip(x.split(self.batch_size), target.split(self.batch_size), strict=True):
            with taken(f"{x_name} and {target_name} must be what model and loss take"):
                losses = self.loss(self.model(rows), labels)
            check_floating("loss's value", losses)
            if losses.shape != rows.shape[:1]:
                raise ValueError(f"loss must give one number a row, (n,), it gave {tuple(losses.shape)} of {len(rows)}")
            if not bool(losses.isfinite().all()):
                raise ValueError(f"{x_name} and {target_name} must have finite losses, got NaN or Inf")
        return x, target

    def gradients(self, x: Tensor, target: Tensor) -> Iterator[Float[Tensor, "k P"]]:
        """Yield each row's gradient, a few rows at a time."""

        def loss(flat: Tensor, row: Tensor, label: Tensor) -> Tensor:
            return self.loss(self._outputs(row[None], flat), label[None])[0]

        few = min(self.batch_size, self._at_once)
        for rows, labels in zip(x.split(few), target.split(few), strict=True):
            yield vmap(grad(loss), in_dims=(None, 0, 0))(self.flat, rows, labels).double()

    def times(
        self, directions: Float[Tensor, "k P"], x: Tensor | None = None, target: Tensor | None = None
    ) -> Float[Tensor, "k P"]:
        """H times each direction, with the mean taken over the given rows; by default over all rows."""
        x, target = (self.x, self.target) if x is None or target is None else (x, target)
        total = torch.zeros_like(directions)
        for rows, labels in zip(x.split(self.batch_size), target.split(self.batch_size), strict=True):
            sums = self._hessian_times if self.second else self._gauss_newton_times
            along = vmap(partial(sums, rows, labels), chunk_size=self._at_once)
            total += along(directions.to(self.flat.dtype)).double()
        return total / len(x) + self.damping * directions

    @property
    def _at_once(self) -> int:
        return max(1, AT_ONCE // self.size)

    def _outputs(self, x: Tensor, flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in self.learned.values()])
        named = zip(self.learned.items(), pieces, strict=True)
        return functional_call(self.model, {name: piece.view_as(p).to(p.dtype) for (name, p), piece in named}, (x,))

    def _hessian_times(self, x: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        return _slope_along(lambda flat: self.loss(self._outputs(x, flat), target).sum(), self.flat, direction)

    def _gauss_newton_times(self, x: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        output, back = vjp(partial(self._outputs, x), self.flat)[:2]
        (moved,) = vjp(lambda slope: back(slope)[0], torch.zeros_like(output))[1](direction)
        return back(_slope_along(lambda z: self.loss(z, target).sum(), output, moved))[0]

    def solver(
        self, method: str, *, steps: int = 1000, tol: float = 1e-6, generator: torch.Generator | None = None
    ) -> Callable[[Float[Tensor, "k P"]], Float[Tensor, "k P"]]:
        """A function that gives H^-1 times each of several gradients."""
        check_choice("method", method, METHODS)
        check_int("steps", steps, low=1)
        tol = float(check_positive("tol", tol))
        check_generator("generator", generator)
        if method == "cg":
            return lambda wanted: _conjugate_gradients(self.times, wanted, steps, tol)
        if method == "lissa":
            return self._series(steps, generator)
        factor = self._factor()
        return lambda wanted: torch.cholesky_solve(wanted.T, factor).T

    def _factor(self) -> Float[Tensor, "P P"]:
        if self.size > LARGEST_EXACT:
            raise ValueError(
                f"method must be 'cg' or 'lissa' for more than {LARGEST_EXACT} parameters, got 'exact' for {self.size}"
            )
        whole = self.times(torch.eye(self.size, dtype=torch.float64, device=self.flat.device))
        factor, failed = torch.linalg.cholesky_ex((whole + whole.T) / 2)
        if bool(failed) or not bool(factor.isfinite().all()):
            raise ValueError(_indefinite(self.damping))
        return factor

    def _series(
        self, steps: int, generator: torch.Generator | None
    ) -> Callable[[Float[Tensor, "k P"]], Float[Tensor, "k P"]]:
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        batches = [(self.x[rows], self.target[rows]) for rows in order.split(self.batch_size)]
        start = torch.randn(1, self.size, dtype=torch.float64, generator=generator).to(self.flat.device)
        scale = max(self._largest(start, *batch) for batch in batches)
        if not math.isfinite(scale):
            raise ValueError(_indefinite(self.damping))

        def solve(wanted: Tensor) -> Tensor:
            here, total, first = wanted / scale, torch.zeros_like(wanted), steps // 2
            turns: list[int] = []
            for step in range(steps):
                if step % len(batches) == 0:
                    turns = torch.randperm(len(batches), generator=generator).tolist()
                x, target = batches[turns[step % len(batches)]]
                share = len(x) * len(batches) / len(self.x)  # the last batch may be smaller
                bent = share * (self.times(here, x, target) - self.damping * here) + self.damping * here
                here = here + (wanted - bent) / scale
                if step >= first:
                    total += here
            if not bool(total.isfinite().all()):
                raise ValueError(_indefinite(self.damping))
            return total / (steps - first)

        return solve

    def _largest(self, direction: Tensor, x: Tensor, target: Tensor) -> float:
        """The largest eigenvalue of H over these rows, by power iteration from this direction."""
        for _ in range(POWER_STEPS):
            direction = self.times(direction / direction.norm(), x, target)
        return float(direction.norm())


def _conjugate_gradients(
    times: Callable[[Tensor], Tensor], wanted: Float[Tensor, "k P"], steps: int, tol: float
) -> Float[Tensor, "k P"]:
    """Solve all systems at once; each stops when its residual is below ``tol`` times its right-hand side."""
    length = wanted.norm(dim=1, keepdim=True)
    residual = direction = wanted / torch.where(length > 0, length, 1)
    solution, left = torch.zeros_like(wanted), residual.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        going = left > tol**2
        if not bool(going.any()):
            break
        moved = times(direction)
        bend = (direction * moved).sum(dim=1, keepdim=True)
        if not bool((bend[going] > 0).all()):
            raise ValueError(_indefinite())
        step = torch.where(going, left / torch.where(going, bend, 1), 0)
        solution, residual = solution + step * direction, residual - step * moved
        before, left = left, residual.square().sum(dim=1, keepdim=True)
        direction = residual + torch.where(going, left / torch.where(going, before, 1), 0) * direction
    if bool((left > tol**2).any()):
        raise ValueError(f"steps must be more than {steps} for conjugate gradients to come to tol={tol:g}")
    return length * solution


def _slope_along(function: Callable[[Tensor], Tensor], here: Tensor, direction: Tensor) -> Tensor:
    """The function's second derivative times the direction, in reverse mode alone, which more operations support."""
    return grad(lambda at: (grad(function)(at) * direction).sum())(here)


def _indefinite(damping: float | None = None) -> str:
    had = "" if damping is None else f", got {damping:g}"
    return f"damping must be larger where the curvature with it is not positive definite or not finite{had}"
