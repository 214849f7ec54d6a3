"""Exact however the work is split: one batch whole, over processes, in micro-batches, in chunks, stacked, interrupted.

A part is put into an objective that trains a small model for some steps: with rows that come twice, rows that are
ignored, uneven and empty shares, and ranks without a row of some class. Value, gradients and buffers of every step must
be those of one process that was given each batch whole: to 1e-9 in float64 and to 1e-5 in float32.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossworks.catalog import Entry, parts
from lossworks.objective import Objective
from lossworks.roles import Loss, Part, Penalty, Perturbation, Weighting
from lossworks.roles.calibrator import Calibrator
from lossworks.testing.inputs import instances
from lossworks.testing.models import is_layer, is_stochastic, minds_repeats, remembers, sees_the_whole
from lossworks.testing.ranks import Ranks
from lossworks.testing.ways import (
    SHARES,
    Step,
    by_total,
    calibrated,
    differences,
    in_chunks,
    in_micro_batches,
    interrupted,
    on_a_rank,
    stacked,
    trained,
    whole_batch,
)

__all__ = [
    "COLUMNS",
    "Cell",
    "catalog_parts",
    "cell_of",
    "check_exactness",
    "exactness_matrix",
    "is_measured",
    "why_not_exact",
]

COLUMNS = ("2 processes", "3 processes", "micro-batches", "chunks", "vmap", "resume")
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}


class Cell(NamedTuple):
    """Whether a part is exact in a column, and what there is to say to it."""

    exact: bool
    note: str = ""

    def __str__(self) -> str:
        return f"exact{': ' if self.note else ''}{self.note}" if self.exact else self.note


def why_not_exact(part: nn.Module, column: str) -> str | None:
    """Why the part is by nature not exact in a column, or has no place in it; None where it must be exact."""
    split = column in ("2 processes", "3 processes", "micro-batches")
    if isinstance(part, Calibrator):
        return "fitted once, after training, on all rows" if column in ("micro-batches", "chunks") else None
    if column == "chunks":
        if isinstance(part, Perturbation) or (isinstance(part, Objective) and part.perturb is not None):
            return "changes the input, before there are outputs to take in chunks"
        if isinstance(part, Penalty) or is_layer(part):
            return "reads or changes the model, not the outputs"
        if not isinstance(part, Weighting) and not (isinstance(part, Loss) and part.rowwise):
            return "the value of a row reads more than its own outputs"
    if split and is_layer(part) and isinstance(part, Part) and part.couples_batch:
        return "a layer of the model, which takes its statistics from the rows that it is given"
    if split and is_stochastic(part) and not _draws_for_all(part):
        return "draws for the rows that it is given, so a split batch gets other draws"
    if column == "vmap" and is_stochastic(part):
        return "stacked draws are not those that each would make alone"
    return None


def _draws_for_all(part: nn.Module) -> bool:
    """Whether all its draws are made at once, about the whole batch."""
    return isinstance(part, Penalty) or (sees_the_whole(part) and not isinstance(part, Objective))


def _note(part: nn.Module, column: str) -> str:
    """What must be known to have it exact in a column."""
    if column.endswith("processes"):
        if isinstance(part, Calibrator):
            return "fitted on rows gathered by `lossworks.distributed.gather_rows`"
        if is_stochastic(part):
            return "with the ranks' random generators in one state"
    if column == "micro-batches":
        if sees_the_whole(part):
            return "by `Objective.micro_batches`, which sees the whole batch first; `total=` alone is another objective"
        if remembers(part):
            return "by `total=` too, unless a row comes twice in one batch: `Objective.micro_batches` merges the two"
    if column == "vmap" and isinstance(part, Weighting) and sees_the_whole(part):
        return "except that ignored rows can't be left out there: each counts as a row of loss 0"
    return ""


def check_exactness(part: nn.Module, ranks: Sequence[Ranks] | None = None) -> dict[str, str]:
    """Hold a part to the same value, gradients and buffers however the work is split.

    Starts processes of its own (some seconds), or uses those it is given.

    Args:
        part: A part in any role, or an objective, as it would be used; it is copied. One without a role is taken for a
            layer of the model where it is called on ``x`` alone, maps ``(n, 3, 2, 2)``, and is called on losses else;
            of a layer that gives several draws, ``(m, n, 3, 2, 2)``, the mean goes on.
        ranks: Groups of 2 and 3 processes.

    Returns:
        For each of :data:`COLUMNS`, ``"exact"`` (and what must be known to have it so), or the reason why it is by
        nature not, which follows from what the part declares.

    Raises:
        AssertionError: where it is not exact, with the step, the number and by how much.
    """
    if not isinstance(part, (Part, Objective)):
        raise TypeError(f"part must be a lossworks part, got {type(part).__name__}")
    name = type(part).__name__
    with contextlib.ExitStack() as stack:
        if ranks is None:
            ranks = [stack.enter_context(Ranks(size)) for size in sorted(SHARES)]
        return {column: str(cell) for column, cell in exactness_matrix({name: [part]}, ranks)[name].items()}


def catalog_parts() -> dict[str, list[nn.Module]]:
    """Every part of the catalog in each of its settings, but the fused layers, which take their own steps."""
    return {name: list(instances(entry.part)) for name, entry in parts().items() if is_measured(entry)}


def is_measured(entry: Entry) -> bool:
    """Whether it is a class of what stands in an objective or a model, and takes no steps of its own."""
    in_a_role = inspect.isclass(entry.part) and issubclass(entry.part, (Part, Objective))
    return in_a_role and entry.role != "fused form"


def exactness_matrix(given: Mapping[str, Sequence[nn.Module]], ranks: Sequence[Ranks]) -> dict[str, dict[str, Cell]]:
    """Measure parts, each in some settings, in every column.

    Raises:
        AssertionError: all that is not exact although it must be.
    """
    named = [(name, part, dtype) for name, settings in given.items() for part in settings for dtype in TOLERANCES]
    spread = [job for job in named if why_not_exact(job[1], "2 processes") is None]
    for group in ranks:
        group.send(on_a_rank, spread)
    wrong: list[str] = []
    truths: list[list[Step]] = []
    try:
        with torch.random.fork_rng(devices=[]):
            for name, part, dtype in named:
                truth = _truth(part, dtype)
                if why_not_exact(part, "2 processes") is None:
                    truths.append(truth)
                for way, got, wanted in _here(part, dtype, truth):
                    wrong += differences(f"{titled(name, dtype)} {way}", got, wanted, _tolerance(dtype, way))
    finally:
        answers = [group.receive() for group in ranks]
    for group, each in zip(ranks, answers, strict=True):
        for rank, done in enumerate(each):
            for (name, _, dtype), truth, ways in zip(spread, truths, done, strict=True):
                where = f"{titled(name, dtype)} on rank {rank} of {group.size}"
                for way, steps in zip(("", ", in micro-batches"), ways, strict=False):
                    wrong += differences(where + way, steps, truth, TOLERANCES[dtype])
    assert not wrong, "not exact:\n" + "\n".join(wrong)
    return {name: {column: cell_of(settings, column) for column in COLUMNS} for name, settings in given.items()}


def cell_of(settings: Sequence[nn.Module], column: str) -> Cell:
    """What holds for a part in all its settings."""
    reasons = [why_not_exact(part, column) for part in settings]
    if any(reasons):
        return Cell(False, next(reason for reason in reasons if reason))
    return Cell(True, next((note for note in (_note(part, column) for part in settings) if note), ""))


def _truth(part: nn.Module, dtype: torch.dtype) -> list[Step]:
    if isinstance(part, Calibrator):
        return calibrated(part, dtype, lambda calibrator, logits, target: _fit(calibrator, logits, target))
    return trained(part, dtype, whole_batch)


def _fit(calibrator: Calibrator, logits: Tensor, target: Tensor) -> None:
    calibrator.fit(logits, target)


def _here(part: nn.Module, dtype: torch.dtype, truth: list[Step]) -> Iterator[tuple[str, list[Step], list[Step]]]:
    """The columns that need one process only: in what way, what came and what was wanted."""
    alone = trained(part, dtype, whole_batch, repeats=False) if minds_repeats(part) else truth
    if why_not_exact(part, "micro-batches") is None:
        yield "in micro-batches", trained(part, dtype, in_micro_batches), truth
        if not sees_the_whole(part):
            yield "in micro-batches with total=", trained(part, dtype, by_total, repeats=False), alone
    if why_not_exact(part, "chunks") is None:
        yield "in chunks", trained(part, dtype, in_chunks, repeats=False), alone
    if why_not_exact(part, "vmap") is None:
        yield "under vmap", *stacked(part, dtype, ignored=not sees_the_whole(part))
    yield "after a stop", *interrupted(part, dtype)


def titled(name: str, dtype: torch.dtype) -> str:
    return f"{name} ({str(dtype).removeprefix('torch.')})"


def _tolerance(dtype: torch.dtype, way: str) -> float:
    return 0.0 if way == "after a stop" else TOLERANCES[dtype]
