"""The time when memories are written: once per batch, the same on all ranks, and not at all if a call fails."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lossworks.distributed import ProcessGroup, gather_rows, row_counts
from lossworks.roles.part import Part

__all__ = ["Offers", "held_back", "remember_over_ranks", "remembering"]

Offers = list[tuple[Part, str, Tensor, Tensor]]


@contextlib.contextmanager
def held_back(module: nn.Module, offers: Offers | None = None) -> Iterator[None]:
    """Collect in ``offers`` (or drop) what the parts in ``module`` would remember, and leave their memories alone."""
    parts = [(part, part._held_back) for part in module.modules() if isinstance(part, Part) and part.memories]
    for part, _ in parts:
        part._held_back = []
    try:
        yield
    finally:
        for part, before in parts:
            if offers is not None:
                offers += [(part, *offer) for offer in part._held_back or ()]
            part._held_back = before


@contextlib.contextmanager
def remembering(module: nn.Module, process_group: ProcessGroup | None = None) -> Iterator[None]:
    """Let the parts in ``module`` remember at the end, as one batch on all ranks; after an error they keep nothing."""
    offers: Offers = []
    with held_back(module, offers):
        yield
    if offers or process_group is not None:  # the other ranks may have offers even if this one has none
        remember_over_ranks(module, offers, process_group)


def remember_over_ranks(module: nn.Module, offers: Offers, process_group: ProcessGroup | None) -> None:
    """Write what was held back on all ranks into every rank's memories, as one batch."""
    for part in module.modules():
        if not (isinstance(part, Part) and part.training):
            continue
        for name in part.memories:
            own = [(index, values) for owner, key, index, values in offers if owner is part and key == name]
            if process_group is None and len(own) < 2:
                for index, values in own:
                    part.remember(name, index, values)
                continue
            memory = part.get_buffer(name)
            index = torch.cat([memory.new_empty(0, dtype=torch.int64), *(rows for rows, _ in own)])
            values = torch.cat([memory[:0], *(value.to(memory.dtype) for _, value in own)])
            if process_group is not None:
                counts = row_counts(len(index), process_group, index.device)
                index = gather_rows(index, process_group, counts)
                values = gather_rows(values, process_group, counts)
            part.remember(name, index, values)
