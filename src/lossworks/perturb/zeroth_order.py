"""Estimated gradients of functions that return values only (zeroth-order, or black-box, gradients)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import (
    check_choice,
    check_floating,
    check_function,
    check_generator,
    check_int,
    check_positive,
    taken,
)
from lossworks.perturb.ball import draw_normal, row_norm
from lossworks.perturb.pgd import _one_a_row
from lossworks.roles import cite

__all__ = ["ZerothOrderFunction", "zeroth_order", "zo_gradient"]

METHODS = ("rge", "cge")


@cite("zhang2022blackbox", helps=("attacks",))
def zo_gradient(
    f: Callable[[Tensor], Float[Tensor, " n"]],
    z: Float[Tensor, "n *features"],
    method: str = "rge",
    mu: float = 0.005,
    q: int = 20,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n *features"]:
    r"""Zeroth-order gradient estimate: each row's gradient of a function that returns only its values.

    .. math::
        \text{rge: } \frac{d}{\mu q} \sum_{i=1}^q \big(f(z + \mu u_i) - f(z)\big) u_i, \qquad
        \text{cge: } \sum_{j=1}^d \frac{f(z + \mu e_j) - f(z - \mu e_j)}{2 \mu}\, e_j

    with :math:`u_i` uniform on the unit sphere, drawn for each row. ``"rge"`` calls f q + 1 times, ``"cge"`` 2 d times.
    For a linear function ``"rge"`` is unbiased, with the squared error :math:`\frac{d - 1}{q} \|g\|^2`; for a quadratic
    function ``"cge"`` is exact. Published code has a variant of cge that averages over the coordinates instead of
    summing, and is too small by the factor d. A batch that is split draws other directions.

    Args:
        f: The function, from rows to one number per row. It is always given z's shape and order of rows.
        z: The rows ``(n, ...)`` at which the gradient is estimated.
        method: ``"rge"`` for random directions, or ``"cge"`` for one difference per coordinate.
        mu: :math:`\mu`, the length of a difference, in z's units, > 0. Differences of near numbers lose digits, so do
            not go below 1e-3 in float32.
        q: The number of random directions, >= 1.
        generator: Where the directions are drawn from; torch's own generator by default.

    Returns:
        The estimated gradients, in z's shape, without a graph.

    Raises:
        ValueError: ``mu <= 0``, ``q < 1``, an unknown method, or a function that does not give one number per row.
        TypeError: z is not floating-point, f is no function.

    Papers: zhang2022blackbox

    >>> zo_gradient(lambda z: (z**2).sum(1), torch.tensor([[1.0, -2.0]]), "cge", mu=0.5)
    tensor([[ 2., -4.]])
    """
    _check(f, z, method, mu, q, generator)
    with torch.no_grad():
        return _estimate(f, z.detach(), method, mu, q, generator)


@cite("zhang2022blackbox", helps=("attacks",))
def zeroth_order(
    f: Callable[[Tensor], Float[Tensor, " n"]],
    z: Float[Tensor, "n *features"],
    method: str = "rge",
    mu: float = 0.005,
    q: int = 20,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    r"""Differentiate through a black-box function: its values, with :func:`zo_gradient` as their gradient.

    .. math:: \nabla_\theta f(z(\theta)) \approx J_z^\top\, \hat g(z)

    ``"rge"`` calls f q + 1 times, ``"cge"`` 2 d + 1 times. No gradient reaches the parameters of f itself. Under
    ``vmap`` f is called slice by slice, so f may be any function.

    Args:
        f: The function, from rows to one number per row. It is always given z's shape and order of rows.
        z: The rows ``(n, ...)`` at which f is called; they may carry a graph.
        method: ``"rge"`` or ``"cge"``, see :func:`zo_gradient`.
        mu: The length of a difference, in z's units, > 0.
        q: The number of random directions, >= 1.
        generator: Where the directions are drawn from; torch's own generator by default.

    Returns:
        The values ``(n,)``, with a graph back to z.

    Raises:
        ValueError: ``mu <= 0``, ``q < 1``, an unknown method, or a function that does not give one number per row.
        TypeError: z is not floating-point, f is no function.

    Papers: zhang2022blackbox

    >>> z = torch.tensor([[1.0, -2.0]], requires_grad=True)
    >>> torch.autograd.grad(zeroth_order(lambda z: (z**2).sum(1), z, "cge", mu=0.5).sum(), z)
    (tensor([[ 2., -4.]]),)
    """
    _check(f, z, method, mu, q, generator)
    values: Tensor = ZerothOrderFunction.apply(z, f, method, mu, q, generator)[0]
    return values


class ZerothOrderFunction(torch.autograd.Function):
    """Autograd function of :func:`zeroth_order`: values and estimated gradient forward, that gradient backward."""

    @staticmethod
    def forward(
        z: Tensor, f: Callable[[Tensor], Tensor], method: str, mu: float, q: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The values ``(n,)`` and the gradient in z's shape."""
        with torch.no_grad():
            values = _asked(f, z).clone()
            return values, _estimate(f, z, method, mu, q, generator, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Save the estimated gradient, which is itself not differentiable."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """The estimated gradient of each row times the gradient of its value."""
        (gradient,) = ctx.saved_tensors
        rows = grad_outputs[0].reshape(-1, *(1 for _ in gradient.shape[1:]))
        return rows * gradient, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], z: Tensor, *others: Any) -> tuple[Any, tuple[int, int]]:
        """Call f slice by slice, as f need not support a stacked dimension."""
        dim = in_dims[0]
        assert dim is not None
        each = [ZerothOrderFunction.apply(one, *others) for one in z.unbind(dim)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0, 0)


def _estimate(
    f: Callable[[Tensor], Tensor],
    z: Tensor,
    method: str,
    mu: float,
    q: int,
    generator: torch.Generator | None,
    values: Tensor | None = None,
) -> Tensor:
    """The gradient at z. ``values`` are f's values there; without them f is called where the method needs them."""

    def column(rows: Tensor) -> Tensor:
        return rows.to(z.dtype).reshape(-1, *(1 for _ in z.shape[1:]))

    def value(at: Tensor) -> Tensor:
        return column(_asked(f, at))

    total, size = torch.zeros_like(z), z[:1].numel() if len(z) else 0
    if method == "cge":
        for coordinate in range(size):
            unit = torch.zeros(size, dtype=z.dtype, device=z.device)
            unit[coordinate] = 1
            step = unit.reshape(z.shape[1:])
            total = total + (value(z + mu * step) - value(z - mu * step)) / (2 * mu) * step
        return total
    here = value(z) if values is None else column(values)
    for _ in range(q):
        step = draw_normal(z, generator)
        step = step / row_norm(step)
        total = total + (value(z + mu * step) - here) * step
    return total * (size / (mu * q))


def _asked(f: Callable[[Tensor], Tensor], at: Tensor) -> Float[Tensor, " n"]:
    with taken(f"f must take rows of shape {tuple(at.shape[1:])}"):
        values = f(at)
    return _one_a_row(values, at, "f")


def _check(f: object, z: Tensor, method: str, mu: float, q: int, generator: torch.Generator | None) -> None:
    check_function("f", f, "z")
    check_floating("z", z)
    if z.ndim == 0:
        raise ValueError("z must have rows, got a tensor of shape ()")
    check_choice("method", method, METHODS)
    check_positive("mu", mu)
    check_int("q", q, low=1)
    check_generator("generator", generator)
