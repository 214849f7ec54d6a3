"""Moves of the parameters that are taken back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["moved", "norm_of"]


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all together, in float32 at least."""
    if not tensors:
        return torch.zeros(())
    device = tensors[0].device
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


@contextmanager
def moved(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """The parameters moved by these steps, and afterwards what they were, bit for bit, however it ends."""
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
