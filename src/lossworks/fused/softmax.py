r"""The numbers that the softmax family reads of a row of logits, and the gradient that is written in their place.

A loss of the family is a function of the row's *surprise* :math:`s = -\log p_y` and, for some, of the *total*
:math:`t = -\sum_k \log p_k`. Both follow from four numbers, which merge over parts of a row: with the maximum m,

.. math::
    \text{mass} = \sum_k e^{z_k - m}, \quad \text{own} = m - z_y, \quad \text{total} = \sum_k (m - z_k), \qquad
    s = \text{own} + \log \text{mass}, \quad t = \text{total} + C \log \text{mass}

and with :math:`a = \partial\ell / \partial s, b = \partial\ell / \partial t` the gradient in the logits is
:math:`(a + C b)\, p_k - b - a\,[k = y]`. Differences to the maximum keep their digits where logits are large.

The logits may also be a shard of the classes: a label that lies in another shard is -1 and has own = 0. On a GPU, in
float32 and half precisions, the Triton kernels compute the same.
"""

import importlib.util
import os
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["RowStatistics", "kernels_apply", "row_gradient_", "row_statistics"]

_BLOCK = 2**17  # numbers
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class RowStatistics(NamedTuple):
    """A row's maximum and, relative to it, its mass, the label's gap and the sum of all gaps; one number per row."""

    maximum: Float[Tensor, " n"]
    mass: Float[Tensor, " n"]
    own: Float[Tensor, " n"]
    total: Float[Tensor, " n"]


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def kernels_apply(like: Tensor, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels can be used for logits of this dtype: on a GPU, or with Triton's interpreter."""
    if dtype not in _KERNEL_DTYPES or torch.compiler.is_compiling():
        return False
    return (like.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and _has_triton()


def row_statistics(
    logits: Float[Tensor, "n classes"],
    target: Int[Tensor, " n"],
    *,
    total: bool = False,
) -> RowStatistics:
    """The statistics of each row, in float32 or wider.

    Args:
        logits: The rows' scores of these classes; rows contiguous.
        target: The label's column, or -1 where the label is not among these classes.
        total: Whether the sum of gaps is needed; otherwise it is 0.
    """
    if kernels_apply(logits, logits.dtype):
        from lossworks.fused import kernels

        return RowStatistics(*kernels.row_statistics(logits, target, total=total))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    maximum, mass, own, below = torch.zeros(4, len(logits), dtype=dtype, device=logits.device)
    if not logits.shape[1]:
        return RowStatistics(maximum - torch.inf, mass, own, below)
    for rows in _blocks(logits):
        score, label, here = _scores(logits[rows], target[rows], dtype)
        torch.amax(score, dim=1, out=maximum[rows])
        # Against a maximum of -inf every difference would be NaN.
        anchor = torch.where(maximum[rows] == -torch.inf, 0, maximum[rows])[:, None]
        own[rows] = torch.where(here, maximum[rows] - score.gather(1, label)[:, 0], 0)
        score = score - anchor
        if total:
            torch.sum(score, dim=1, out=below[rows]).neg_()
        torch.sum(score.exp_(), dim=1, out=mass[rows])
    return RowStatistics(maximum, mass, own, below)


def row_gradient_(
    logits: Float[Tensor, "n classes"],
    target: Int[Tensor, " n"],
    maximum: Float[Tensor, " n"],
    log_mass: Float[Tensor, " n"],
    slope: Float[Tensor, " n"],
    on_own: Float[Tensor, " n"],
    on_total: Float[Tensor, " n"] | None = None,
) -> None:
    r"""Overwrite the logits with the gradient :math:`\text{slope} \cdot p_k - b - a\,[k = y]`.

    Args:
        logits: The rows' scores of these classes, which are replaced by the gradient. Rows must be contiguous.
        target: The label's column, or -1 where the label is not among these classes.
        maximum: The maximum over all classes.
        log_mass: The logarithm of the mass over all classes, relative to the maximum.
        slope: :math:`a + C b`.
        on_own: a, the gradient in the surprise.
        on_total: b, the gradient in the total. A row where all three are 0 gets gradient 0, whatever it contains.
    """
    if kernels_apply(logits, logits.dtype):
        from lossworks.fused import kernels

        kernels.row_gradient_(logits, target, maximum, log_mass, slope, on_own, on_total)
        return
    if not logits.shape[1]:
        return
    for rows in _blocks(logits):
        score, label, here = _scores(logits[rows], target[rows], maximum.dtype)
        counts = (slope[rows] != 0) | (on_own[rows] != 0)
        p = (score - maximum[rows, None]).sub_(log_mass[rows, None]).exp_().mul_(slope[rows, None])
        if on_total is not None:
            counts |= on_total[rows] != 0
            p.sub_(on_total[rows, None])
        p.scatter_add_(1, label, torch.where(here, -on_own[rows], 0)[:, None])
        logits[rows] = p if bool(counts.all()) else torch.where(counts[:, None], p, 0)


def _scores(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The scores, the label's column (0 if it lies elsewhere), and whether the label is here."""
    return logits.to(dtype), target.clamp(min=0)[:, None], target >= 0


def _blocks(logits: Tensor) -> list[slice]:
    """The rows in groups that fit a processor's cache; on a GPU all at once."""
    step = max(1, _BLOCK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    return [slice(start, start + step) for start in range(0, len(logits), step)]
