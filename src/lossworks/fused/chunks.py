"""How the rows are cut: chunks that fit a memory budget, and within them blocks that fit the processor's cache."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from lossworks.checks import check_int

_SHARE = 10
"""A chunk is at most this part of the logit matrix: less than an eighth with what stands beside it."""
_SMALLEST, _LARGEST = 2**22, 2**28
"""Bytes of a chunk, whatever its share: below, the matrix products lose more time than there is memory to save."""
_MULTIPLE = 16
"""Rows of a chunk come in multiples of this, which the matrix products like."""
_BLOCK = 2**16
"""Numbers of a block, for each thread: a quarter of a megabyte in float32, with a few results of steps beside it."""
_RESULTS = 8
"""As many results of steps, of a block's size, can be there at once."""
_LARGEST_MAPPED = 2**25 - 2**13
"""Bytes: the GNU allocator learns from pieces up to 32 MB, with their own bookkeeping."""
_TILE = 2**22
"""Bytes of a tile of the weight: a product with few rows is bound by how often it is read and packed."""


@functools.cache
def keep_freed_pages() -> None:
    """Have blocks' results made in pages that are at hand, once in a process.

    A block's results are some megabytes, made and freed again and again. The GNU allocator gives more than twice the
    largest piece that was ever mapped and freed back to the system, and fresh pages for each block would cost more
    than what is computed in them. Freeing the largest piece that it goes by, without a touch, raises that.
    """
    torch.empty(_LARGEST_MAPPED, dtype=torch.uint8)


def chunk_size(
    rows: int, classes: int, itemsize: int, chunk: int | None = None, *, copies: int = 1, in_blocks: bool = False
) -> int:
    """Rows of a chunk: as asked for, or as many as the budget allows.

    ``copies`` is how many matrices of the chunk's size are held at once; ``in_blocks``, whether it is read in blocks
    whose steps have results.
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
    """The chunks; none of no rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def blocks(matrix: Tensor) -> Iterator[slice]:
    """Rows of a chunk that fit the processor's cache, one for each thread at least; on other devices all at once."""
    rows, classes = matrix.shape
    if matrix.device.type != "cpu":
        return slices(rows, max(rows, 1))
    return slices(rows, _block_rows(classes))


def _block_rows(classes: int) -> int:
    return max(_BLOCK // max(classes, 1), 1) * torch.get_num_threads()


def tiles(weight: Tensor) -> Iterator[slice]:
    """Classes whose weights fit the processor's cache, for a product with few rows; on other devices all at once.

    A layer without classes, as a rank may hold of a sharded one, is one tile, so that its product is written.
    """
    classes, d = weight.shape
    size = max(_TILE // max(d * weight.element_size(), 1), 1) if weight.device.type == "cpu" else max(classes, 1)
    return slices(classes, size) if classes else iter((slice(0, 0),))
