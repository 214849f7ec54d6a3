"""What makes the memory of large results cheap to get again."""

import functools

import torch

__all__ = ["keep_freed_pages"]

_LARGEST_MAPPED = 2**25 - 2**13
"""Bytes. The GNU allocator adapts to pieces of up to 32 MB, including its own bookkeeping."""


@functools.cache
def keep_freed_pages() -> None:
    """Make the allocator reuse the memory pages of freed results; this is done once per process.

    Some results take up to a few megabytes and are allocated and freed again and again. The GNU allocator returns freed
    memory to the system above twice the largest piece that was ever mapped and freed; fresh pages for each result would
    then cost more than the computation in them. Allocating and freeing the largest piece that it adapts to, without
    touching it, raises that limit.
    """
    torch.empty(_LARGEST_MAPPED, dtype=torch.uint8)
