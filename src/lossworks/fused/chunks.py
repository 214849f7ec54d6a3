"""How the rows are cut: chunks that fit a memory budget, and within them blocks that fit the processor's cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lossworks.checks import check_int

_SHARE = 9
"""A chunk is at most this part of the logit matrix: an eighth with what stands beside it."""
_SMALLEST, _LARGEST = 2**22, 2**28
"""Bytes of a chunk, whatever its share: below, the matrix products lose more time than there is memory to save."""
_BLOCK = 2**17
"""Numbers of a block: half a megabyte in float32, with a few results of steps beside it."""


def chunk_size(rows: int, classes: int, itemsize: int, chunk: int | None = None, *, copies: int = 1) -> int:
    """Rows of a chunk: as asked for, or as many as the budget allows, evenly spread.

    ``copies`` is how many matrices of the chunk's size are held at once.
    """
    if chunk is not None:
        return check_int("chunk", chunk, low=1)
    row = max(classes * itemsize * copies, 1)
    budget = min(max(rows * classes * itemsize // _SHARE, _SMALLEST), _LARGEST)
    most = max(budget // row, 1)
    return -(-rows // max(-(-rows // most), 1)) or 1


def slices(rows: int, size: int) -> Iterator[slice]:
    """The chunks; none of no rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def blocks(matrix: Tensor) -> Iterator[slice]:
    """Rows of a chunk that fit the processor's cache, one for each thread at least; on other devices all at once."""
    rows, classes = matrix.shape
    if matrix.device.type != "cpu":
        return slices(rows, max(rows, 1))
    return slices(rows, max(_BLOCK // max(classes, 1), torch.get_num_threads()))
