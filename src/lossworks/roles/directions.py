"""Rows scaled to length 1, for cosines."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["directions"]


def directions(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """The rows scaled to length 1, however long or short; a row of zeros has no direction: it stays 0, with gradient 0.

    >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000],
            [1.0000, 0.0000]])
    """
    if not rows.shape[-1]:
        return rows
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    none = largest == 0
    # A power of two, by which nothing is rounded; a direction has no slope in it, so it may be held fixed.
    most = -math.log2(torch.finfo(rows.dtype).tiny)
    exponent = torch.where(none, 0, largest.log2().floor().clamp(-most, most))
    scaled = torch.where(none, 1, rows * torch.exp2(-exponent))
    return torch.where(none, 0, scaled / scaled.norm(dim=-1, keepdim=True))
