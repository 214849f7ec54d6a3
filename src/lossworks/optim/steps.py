"""Temporary moves of the parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["moved", "norm_of"]


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, in float32 or wider."""
    if not tensors:
        return torch.zeros(())
    device = tensors[0].device
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


@contextmanager
def moved(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Move the parameters by these steps; at the end they are restored bit for bit, even after an error."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, step in zip(parameters, steps, strict=True):
            p.add_(step.to(p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
