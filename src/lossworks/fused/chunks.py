"""How rows are divided: into chunks that fit a memory budget, and these into blocks that fit the processor's cache."""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lossworks.checks import check_int

_SHARE = 8
"""A chunk and what is computed beside it take at most this fraction of the logit matrix."""
_BESIDE = 3 * 2**19
"""The bytes that are computed beside a chunk: a few numbers per row, and what a matrix product keeps in any case."""
_COPIED = 3 / 8
"""The share of a tile of the weight that each thread copies for its part of a matrix product."""
_SMALLEST, _LARGEST = 2**22, 2**28
"""The bytes of the smallest and largest chunk: below the smallest, products lose more time than memory is saved."""
_MULTIPLE = 16
"""The number of rows in a chunk is a multiple of this if memory allows, which is faster in matrix products."""
_CACHE = 2**20
"""The bytes of a processor core's own (second-level) cache where the machine does not say."""
_RESULTS = 8
"""How many results of a block's size may exist at once."""
_TILE = 4
"""The size of a tile of the weight in caches: the time of a product with few rows depends on how often it is read."""
_STEP = 2**18
"""A block has at least so many numbers, half of them for each thread, as each of its steps waits for all threads."""


@functools.cache
def _cache_size() -> int:
    """The bytes of a processor core's second-level cache, as the machine says."""
    says: int = getattr(torch.cpu, "get_capabilities", dict[str, int])().get("l2_cache_size", 0)
    return says if 2**17 <= says <= 2**27 else _CACHE


def _cache() -> int:
    """The same, or the usual size while code is compiled, which asks no machine."""
    return _CACHE if torch.compiler.is_compiling() else _cache_size()


def chunk_size(
    rows: int, classes: int, itemsize: int, chunk: int | None = None, *, copies: int = 1, in_blocks: bool = False
) -> int:
    """The number of rows in a chunk: the number asked for, or as many as the budget allows.

    ``copies`` is how many matrices of the chunk's size are held at once. ``in_blocks`` says whether the chunk is read
    in blocks whose steps have results.
    """
    if chunk is not None:
        return check_int("chunk", chunk, low=1)
    share = min(rows * classes * itemsize // _SHARE, _LARGEST)
    budget = share - _BESIDE - min(int(torch.get_num_threads() * _COPIED * _TILE * _cache()), share // 4)
    if in_blocks:
        budget -= _RESULTS * _block_rows(classes, itemsize, _RESULTS) * classes * itemsize
    size = max(max(budget, _SMALLEST) // max(classes * itemsize * copies, 1), 1)
    if size >= rows:
        return max(rows, 1)
    even = math.ceil(rows / math.ceil(rows / size))
    rounded = math.ceil(even / _MULTIPLE) * _MULTIPLE
    return rounded if rounded <= size else even


def slices(rows: int, size: int) -> Iterator[slice]:
    """The chunks; none if there are no rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def blocks(matrix: Tensor, results: int = _RESULTS) -> Iterator[slice]:
    """Rows of a chunk that fit the processor's cache, at least one per thread; on other devices all rows at once.

    ``results`` is how many results of a block's size may exist at once, besides the block itself.
    """
    rows, classes = matrix.shape
    if matrix.device.type != "cpu":
        return slices(rows, max(rows, 1))
    return slices(rows, _block_rows(classes, matrix.element_size(), results))


def _block_rows(classes: int, itemsize: int, results: int) -> int:
    """The rows of a block: the cache holds the block, its results, and as much again as the block of other numbers.

    Where the cache is too small for that, a block still has enough numbers for its steps to be worth their calls.
    """
    threads = torch.get_num_threads()
    numbers = max(threads * max(_cache() // (itemsize * (2 + results)), _STEP // 2), _STEP)
    return max(numbers // max(classes, 1), threads)


def tiles(weight: Tensor) -> Iterator[slice]:
    """Classes whose weights fit the processor's cache, for a product with few rows; on other devices all at once.

    A layer without classes, as a rank of a sharded layer may hold, is one tile, so that its product is still written.
    """
    classes, d = weight.shape
    size = (
        max(_TILE * _cache() // max(d * weight.element_size(), 1), 1)
        if weight.device.type == "cpu"
        else max(classes, 1)
    )
    return slices(classes, size) if classes else iter((slice(0, 0),))
