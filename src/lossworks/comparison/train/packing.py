"""Packing: which replicas are stepped together in a tile, and how many tiles fit in memory at a time."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod

import numpy as np
import torch

from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.train.jobs import Replica, Training
from lossworks.comparison.train.risk import signature

__all__ = ["EVALUATED_VALUES", "Piece", "Unit", "models_in", "packed", "pieces_of", "taken_by", "too_large", "units_of"]

TILE_BYTES = 2**24
"""Replicas are stepped together in tiles whose parameters and activations fit in a cache of this size."""
HALVED_BYTES = 2**20
"""The size from which replicas are in at least two tiles, so that two cores have work, on every machine alike."""
EVALUATED_VALUES = 2**22
"""How many input values, and output values, are in memory at once when inner rows are scored."""

Piece = list[Replica]
"""The replicas of one tile."""
Unit = list[Piece]
"""Pieces that must be trained at the same time, because settings in them race each other."""


def pieces_of(
    replicas: Sequence[Replica], training: Training, cannot_stack: Callable[[Sequence[Replica]], str], notes: list[str]
) -> list[Piece]:
    """Divide the replicas into tiles of those that can be stacked and whose numbers fit in the cache together.

    ``cannot_stack`` returns why replicas that look alike cannot be stacked, or an empty text if they can.
    """
    alike: dict[object, list[Replica]] = {}
    for replica in replicas:
        alike.setdefault((signature(replica.job.objective), replica.architecture), []).append(replica)
    pieces = []
    for together in alike.values():
        reason = cannot_stack(together)
        if reason:
            notes.append(
                f"{type(together[0].job.objective.loss).__name__}: trained one at a time, as vmap says: {reason}"
            )
        total = len(together) * _bytes(together[0], training.batch_size)
        count = max(-(-total // TILE_BYTES), 1 + (total >= HALVED_BYTES)) if not reason else len(together)
        pieces += _divided(together, min(count, len(together)))
    return pieces


def _divided(replicas: Sequence[Replica], count: int) -> list[Piece]:
    """Divide into about ``count`` pieces; contests are not divided unless there are more pieces than contests."""
    contests: dict[int, list[Replica]] = {}
    for replica in replicas:
        contests.setdefault(replica.job.contest, []).append(replica)
    each = list(contests.values())
    if count <= len(each):
        chosen = np.array_split(np.arange(len(each)), count)
        return [[replica for number in numbers for replica in each[number]] for numbers in chosen]
    share = -(-count // len(each))
    return [
        [contest[number] for number in numbers]
        for contest in each
        for numbers in np.array_split(np.arange(len(contest)), min(share, len(contest)))
    ]


def units_of(pieces: Sequence[Piece], racing: bool) -> list[Unit]:
    """Join the pieces that share a contest into units; without racing, each piece is a unit."""
    if not racing:
        return [[piece] for piece in pieces]
    units: list[tuple[set[int], Unit]] = []
    for piece in pieces:
        contests, unit = {replica.job.contest for replica in piece}, [piece]
        apart = []
        for others, other in units:
            if contests & others:
                contests, unit = contests | others, other + unit
            else:
                apart.append((others, other))
        units = [*apart, (contests, unit)]
    return [unit for _, unit in units]


def packed(units: Sequence[Unit], training: Training, memory: int | None) -> list[list[Unit]]:
    """Pack the units into parts, each of which fits in ``memory`` by estimate or is a single unit."""
    parts: list[list[Unit]] = []
    for unit in units:
        if parts and (memory is None or taken_by([*parts[-1], unit], training) <= memory):
            parts[-1].append(unit)
        else:
            parts.append([unit])
    return parts


def too_large(parts: Sequence[list[Unit]], training: Training, memory: int | None) -> list[str]:
    """A sentence for the user if a part that cannot be divided needs more than the allowed memory."""
    taken = max((taken_by(units, training) for units in parts), default=0)
    if memory is None or taken <= memory:
        return []
    return [
        f"models that are trained at once take about {taken / 1e6:,.0f} MB, more than the {memory / 1e6:,.0f} MB that "
        f"memory allows"
    ]


def models_in(units: Sequence[Unit]) -> int:
    """The number of replicas in these units."""
    return sum(len(piece) for unit in units for piece in unit)


def taken_by(units: Sequence[Unit], training: Training) -> int:
    """Estimate the bytes needed to train these units together: all states, and what scoring needs at its peak.

    Besides the memory of a step, a replica keeps its parameters as built, its best state and the state that replaces
    it. About as much again is memory that was freed and that the allocator keeps.
    """
    pieces = [piece for unit in units for piece in unit]
    states = sum(len(piece) * (_bytes(piece[0], training.batch_size) + 16 * _sizes(piece[0])[0]) for piece in pieces)
    scored = sorted((_scored(piece) for piece in pieces), reverse=True)
    return states + sum(scored[: torch.get_num_threads()])


def _scored(piece: Piece) -> int:
    """Estimate the bytes needed to score a piece: two layers' values for the rows that are scored at once."""
    _, sizes = _sizes(piece[0])
    longest, outputs = max(len(replica.job.inner) for replica in piece), piece[0].architecture.outputs
    together = min(len(piece), max(1, EVALUATED_VALUES // (longest * outputs)))
    rows = min(together * longest, max(together, EVALUATED_VALUES // sizes[0]))
    return 4 * (rows * max(map(sum, pairwise(sizes))) + 4 * together * longest * outputs)


def _bytes(replica: Replica, rows: int) -> int:
    """Estimate the bytes of one replica in a step: parameters, gradients, moments, and twice the activations."""
    parameters, sizes = _sizes(replica)
    return 4 * (4 * parameters + 2 * rows * sum(sizes))


def _sizes(replica: Replica) -> tuple[int, tuple[int, ...]]:
    """The number of a replica's parameters, and the number of values in a row and in each layer's output for it."""
    return _sizes_of(replica.architecture)


@lru_cache
def _sizes_of(architecture: Architecture) -> tuple[int, tuple[int, ...]]:
    with torch.random.fork_rng([]):
        network = architecture.network()
    sizes = [prod(architecture.input_shape)]
    hooks = [
        module.register_forward_hook(lambda _m, _i, output: sizes.append(output.numel()))
        for module in network.modules()
        if not list(module.children())
    ]
    network.eval()(torch.zeros(1, *architecture.input_shape))
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in network.parameters()), tuple(sizes)
