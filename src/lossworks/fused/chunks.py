"""How rows are divided: into chunks that fit a memory budget, and these into blocks that fit the processor's cache."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from lossworks.checks import check_int

_SHARE = 10
"""A chunk is at most this fraction of the logit matrix; with its temporary results it stays below an eighth."""
_SMALLEST, _LARGEST = 2**22, 2**28
"""The bytes of the smallest and largest chunk: below the smallest, products lose more time than memory is saved."""
_MULTIPLE = 16
"""The number of rows in a chunk is a multiple of this, which is faster in matrix products."""
_BLOCK = 2**16
"""The numbers in a block, per thread: a quarter of a megabyte in float32, so that a few results fit beside it."""
_RESULTS = 8
"""How many results of a block's size may exist at once."""
_LARGEST_MAPPED = 2**25 - 2**13
"""Bytes. The GNU allocator adapts to pieces of up to 32 MB, including its own bookkeeping."""
_TILE = 2**22
"""The bytes of a tile of the weight: the time of a product with few rows depends on how often the weight is read."""


@functools.cache
def keep_freed_pages() -> None:
    """Make the allocator reuse freed memory pages for the results of blocks; this is done once per process.

    A block's results are some megabytes, which are allocated and freed again and again. The GNU allocator returns freed
    memory to the system above twice the largest piece that was ever mapped and freed; fresh pages for each block would
    then cost more than the computation in them. Allocating and freeing the largest piece that it adapts to, without
    touching it, raises that limit.
    """
    torch.empty(_LARGEST_MAPPED, dtype=torch.uint8)


def chunk_size(
    rows: int, classes: int, itemsize: int, chunk: int | None = None, *, copies: int = 1, in_blocks: bool = False
) -> int:
    """The number of rows in a chunk: the number asked for, or as many as the budget allows.

    ``copies`` is how many matrices of the chunk's size are held at once. ``in_blocks`` says whether the chunk is read
    in blocks whose steps have results.
    """
    if chunk is not None:
        return check_int("chunk", chunk, low=1)
    budget = min(max(rows * classes * itemsize // _SHARE, _SMALLEST), _LARGEST)
    if in_blocks:
        budget = max(budget - _RESULTS * _block_rows(classes) * classes * itemsize, _SMALLEST)
    size = max(budget // max(classes * itemsize * copies, 1), 1)
    if size >= rows:
        return max(rows, 1)
    return size - size % _MULTIPLE if size > _MULTIPLE else size


def slices(rows: int, size: int) -> Iterator[slice]:
    """The chunks; none if there are no rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def blocks(matrix: Tensor) -> Iterator[slice]:
    """Rows of a chunk that fit the processor's cache, at least one per thread; on other devices all rows at once."""
    rows, classes = matrix.shape
    if matrix.device.type != "cpu":
        return slices(rows, max(rows, 1))
    return slices(rows, _block_rows(classes))


def _block_rows(classes: int) -> int:
    return max(_BLOCK // max(classes, 1), 1) * torch.get_num_threads()


def tiles(weight: Tensor) -> Iterator[slice]:
    """Classes whose weights fit the processor's cache, for a product with few rows; on other devices all at once.

    A layer without classes, as a rank of a sharded layer may hold, is one tile, so that its product is still written.
    """
    classes, d = weight.shape
    size = max(_TILE // max(d * weight.element_size(), 1), 1) if weight.device.type == "cpu" else max(classes, 1)
    return slices(classes, size) if classes else iter((slice(0, 0),))
