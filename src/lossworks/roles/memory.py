"""Memories with one value per training row, and how several values for one row in the same batch are merged."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lossworks.checks import readable

__all__ = ["MERGES", "each_once", "merge_rows"]

MERGES = ("amin", "amax", "mean", "sum")
"""The least, the largest or the mean of the values replaces the stored one; with "sum" their sum is added to it."""


def merge_rows(
    memory: Shaped[Tensor, "N *rest"], index: Int[Tensor, " n"], values: Shaped[Tensor, "n *rest"], merge: str
) -> None:
    """Write values into the rows of a memory, in place; if a row comes several times, the order makes no difference.

    An index below 0 marks a row that is not remembered. A value that is not finite is not remembered either.

    Raises:
        TypeError: the memory's dtype cannot hold the merged values: it is boolean or complex, or an integer dtype with
            ``"mean"``.

    >>> memory = torch.zeros(3)
    >>> merge_rows(memory, torch.tensor([2, 2, 0, -1]), torch.tensor([3.0, 5.0, 1.0, 9.0]), "mean")
    >>> memory
    tensor([1., 0., 4.])
    """
    if not memory.is_floating_point() and (merge == "mean" or memory.dtype is torch.bool or memory.is_complex()):
        must = "be floating-point" if merge == "mean" else "hold real numbers"
        raise TypeError(f"a memory merged by {merge!r} must {must}, got {memory.dtype}")
    if merge != "sum" and each_once(index) and readable(values) and bool(values.sum().isfinite()):
        kept = (index >= 0).nonzero().flatten()
        values = values if len(kept) == len(index) else values[kept]
        memory[index[kept]] = values.to(memory.dtype)
        return
    trailing = tuple(range(1, values.ndim))
    finite = values.isfinite().all(dim=trailing) if trailing else values.isfinite()
    wanted = ((index >= 0) & finite).reshape(-1, *(1 for _ in trailing)).expand(values.shape)
    rows, values = index.clamp(min=0), values.to(memory.dtype)
    places = rows.reshape(-1, *(1 for _ in trailing)).expand(values.shape)
    if merge == "sum":
        memory.index_add_(0, rows, torch.where(wanted, values, 0))
        return
    before = memory[rows]
    # The memory itself is the scratch space, so that the cost depends on the batch and not on the data set.
    counted = "sum" if merge == "mean" else "amax"
    memory.scatter_reduce_(0, places, wanted.to(memory.dtype), counted, include_self=False)
    times = memory[rows]
    if merge == "mean":
        merge, values, nothing = "sum", values / times, 0.0
    else:
        limits = torch.finfo(memory.dtype) if memory.is_floating_point() else torch.iinfo(memory.dtype)
        nothing = limits.max if merge == "amin" else limits.min
    memory.scatter_reduce_(0, places, torch.where(wanted, values, nothing), merge, include_self=False)
    memory[rows] = torch.where(times > 0, memory[rows], before)


def each_once(index: Int[Tensor, " n"]) -> bool:
    """Whether no remembered row comes twice; False where the values may not be read."""
    if not readable(index):
        return False
    remembered = [row for row in index.tolist() if row >= 0]
    return len(set(remembered)) == len(remembered)
