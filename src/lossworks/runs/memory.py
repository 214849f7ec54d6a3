"""How much memory there is, how much of it may be used, and whether an error means that it was too little."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from lossworks.checks import InputError, shown

__all__ = ["available", "budget", "is_out_of_memory", "size"]

SHARE = 0.5
"""The share of the memory free at the start of a comparison that the models in training may use."""
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SAID = ("not enough memory", "can't allocate memory", "out of memory", "bad alloc", "alloc_failed")


def size(given: int | str) -> int:
    """The number of bytes in ``"4GB"`` (10⁹ each), ``"512 MiB"`` (2²⁰ each), or a plain number of bytes."""
    text = given if isinstance(given, str) else shown(given)
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    amount = float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2].lower()] if found else 0.0
    if not isinstance(given, (int, str)) or not 1 <= amount < math.inf:
        raise InputError(f"memory must be a size > 0 such as '4GB' or '512MB', got {shown(given)}")
    return int(amount)


def budget(given: int | str | None, device: torch.device) -> int | None:
    """The bytes that models in training may use: as given, or a share of the free memory; None if that is unknown."""
    if given is not None:
        return size(given)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    return None if free is None else int(SHARE * free)


def available(root: Path = Path("/")) -> int | None:
    """The bytes that this process may still use: the least that its machine, control group and own limit allow."""
    found = list(_free(root))
    return max(min(found), 0) if found else None


def _free(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])
    own = [line.partition("::")[2].lstrip("/") for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")]
    groups = root / "sys/fs/cgroup"
    for folder, limit, used in [
        *((groups / name, "memory.max", "memory.current") for name in dict.fromkeys(["", *own])),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ]:
        values = [line for name in (limit, used) for line in _lines(folder / name)[:1]]
        if len(values) == 2 and all(value.isdigit() for value in values):
            cached = [line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith("inactive_file ")]
            yield int(values[0]) - int(values[1]) + sum(map(int, cached))
    yield from _own_limit(root)


def _own_limit(root: Path) -> Iterator[int]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    limit, pages = resource.getrlimit(resource.RLIMIT_AS)[0], _lines(root / "proc/self/statm")
    if limit != resource.RLIM_INFINITY and pages:
        yield limit - int(pages[0].split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that there was too little memory, in the words of torch, numpy or Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SAID)
