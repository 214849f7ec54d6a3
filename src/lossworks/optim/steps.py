"""Temporary moves of the parameters, along gradients that may be dense or sparse and in any precision."""

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossworks.checks import wide

__all__ = ["Move", "gathered", "maximised", "moved", "norm_of", "towards"]

Rows = tuple[Tensor, ...]
"""The rows of a parameter that its sparse gradient has; all of it, without a name, where the gradient is dense."""


def gathered(gradient: Tensor) -> tuple[Rows, Tensor]:
    """The rows of a gradient and its values there, each row once."""
    if not gradient.is_sparse:
        return (), gradient
    gradient = gradient.coalesce()
    return tuple(gradient.indices()), gradient.values()


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, with no square that is 0 or infinite in float32."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    device = tensors[0].device
    if device.type == "cpu":  # where float64 is slow, and to look at a number waits for nothing
        norm = _norm(tensors, torch.float32, device)
        if 1e-15 < float(norm) < 1e15:
            return norm
    return _norm(tensors, torch.float64, device)


def _norm(tensors: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, dtype)) for t in tensors]
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]).double())


class Move:
    """A step of one parameter, all of it or some rows, that can be taken back bit for bit.

    Args:
        parameter: What moves.
        rows: Which rows of it, or all.
        step: How far, but for a factor.
        factor: The factor.
    """

    def __init__(self, parameter: nn.Parameter, rows: Rows, step: Tensor, factor: Tensor) -> None:
        self.parameter, self.rows = parameter, rows
        here = parameter.detach()
        self.before = here[rows] if rows else here.clone()
        if rows or here.dtype.itemsize < 4:
            self._put(torch.addcmul(wide(self.before), step, factor).to(here.dtype))
        else:
            here.addcmul_(step, factor)

    def _put(self, values: Tensor) -> None:
        here = self.parameter.detach()
        if self.rows:
            here.index_put_(self.rows, values)
        else:
            here.copy_(values)

    def undo(self) -> None:
        """Restore what was there before."""
        self._put(self.before)


def maximised(optimizer: Optimizer) -> set[nn.Parameter]:
    """The parameters whose objective the optimizer maximises."""
    return {p for group in optimizer.param_groups if group.get("maximize") for p in group["params"]}


def towards(
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    length: float | Tensor,
    *,
    adaptive: bool = False,
    against: Set[nn.Parameter] = frozenset(),
) -> tuple[list[Move], Tensor]:
    """Move along the gradients as far as a length, and give the moves and the gradients' norm.

    Where the norm is 0 or not finite nothing moves. ``adaptive`` scales by the parameters' sizes, and those ``against``
    move the other way.
    """
    if any(p.is_meta for p in parameters):
        raise ValueError("optimizer has a parameter on the meta device, which holds no numbers to move")
    pieces = [gathered(gradient) for gradient in gradients]
    values = [wide(value) for _, value in pieces]
    sizes: list[Tensor] = []
    if adaptive:
        sizes = [
            wide(p.detach()[rows] if rows else p.detach()).abs()
            for p, (rows, _) in zip(parameters, pieces, strict=True)
        ]
        values = [size * value for size, value in zip(sizes, values, strict=True)]
    norm = norm_of(values)
    known = norm.isfinite() & (norm > 0)
    if norm.device.type == "cpu" and not bool(known):
        return [], norm
    # Its root twice, since a scale of itself may be beyond a float32.
    root = torch.where(known, length / norm, 0.0).sqrt()
    roots = {kind: root.to(*kind) for kind in {(value.device, value.dtype) for value in values}}
    moves = []
    for number, (p, (rows, _), value) in enumerate(zip(parameters, pieces, values, strict=True)):
        here = roots[value.device, value.dtype]
        step = value * here
        if value.device.type != "cpu":
            step = torch.where(known.to(value.device), step, 0.0)
        factor = -here if p in against else here
        moves.append(Move(p, rows, step, sizes[number] * factor if adaptive else factor))
    return moves, norm


@contextmanager
def moved(moves: Sequence[Move]) -> Iterator[None]:
    """Take these moves back at the end, even after an error."""
    try:
        yield
    finally:
        for move in moves:
            move.undo()
