"""The optimizers' rows of the table of exactness: the same weights after each step however the work is split."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import SGD

from lossworks.catalog import parts
from lossworks.losses import CrossEntropyLoss, SquaredLoss
from lossworks.objective import Objective
from lossworks.roles.wrapper import Wrapper
from lossworks.testing.exactness import COLUMNS, TOLERANCES, Cell, titled
from lossworks.testing.inputs import CLASSES, Recipe, driven, reads_rows, take_step
from lossworks.testing.models import Model, batches_of
from lossworks.testing.ranks import Ranks
from lossworks.testing.ways import (
    Step,
    Way,
    differences,
    in_micro_batches,
    over_ranks,
    saved_and_loaded,
    whole_batch,
)

__all__ = ["catalog_optimizers", "optimizer_cell", "optimizer_matrix"]

WHOLE = "asks the model about rows, and must be given whole batches"
GIVEN = "takes gradients as they are, whatever gave them"
ALONE = "steps in place, one model at a time"


def catalog_optimizers() -> dict[str, list[Recipe]]:
    """Every wrapper of the catalog in each of its settings."""
    wrappers = {n: e.part for n, e in parts().items() if isinstance(e.part, type) and issubclass(e.part, Wrapper)}
    return {name: [Recipe(wrapper, setting) for setting in driven(wrapper)] for name, wrapper in wrappers.items()}


def optimizer_matrix(recipes: Mapping[str, Sequence[Recipe]], ranks: Sequence[Ranks]) -> dict[str, dict[str, Cell]]:
    """Measure wrappers, each in some settings, in every column.

    Raises:
        AssertionError: all that is not exact although it must be.
    """
    jobs = [(name, recipe, dtype) for name, some in recipes.items() for recipe in some for dtype in TOLERANCES]
    spread = [job for job in jobs if not job[1].wrapper.asks_rows]
    for group in ranks:
        group.send(on_a_rank, spread)
    wrong: list[str] = []
    truths: dict[int, list[Step]] = {}
    try:
        with torch.random.fork_rng(devices=[]):
            for number, (name, recipe, dtype) in enumerate(jobs):
                truths[number] = trained(recipe, dtype, whole_batch)
                again = trained(recipe, dtype, whole_batch, stop_after=2)
                wrong += differences(f"{titled(name, dtype)} after a stop", again, truths[number], 0.0)
                if not recipe.wrapper.asks_rows:
                    parts = trained(recipe, dtype, in_micro_batches)
                    where = f"{titled(name, dtype)} in micro-batches"
                    wrong += differences(where, parts, truths[number], TOLERANCES[dtype])
    finally:
        answers = [group.receive() for group in ranks]
    whole = [truths[number] for number, job in enumerate(jobs) if not job[1].wrapper.asks_rows]
    for group, each in zip(ranks, answers, strict=True):
        for rank, done in enumerate(each):
            for (name, _, dtype), truth, ways in zip(spread, whole, done, strict=True):
                for way, steps in zip(("", ", in micro-batches"), ways, strict=True):
                    where = f"{titled(name, dtype)} on rank {rank} of {group.size}{way}"
                    wrong += differences(where, steps, truth, TOLERANCES[dtype])
    assert not wrong, "not exact:\n" + "\n".join(wrong)
    return {
        name: {column: optimizer_cell(some[0].wrapper, column) for column in COLUMNS} for name, some in recipes.items()
    }


def optimizer_cell(wrapper: type[Wrapper], column: str) -> Cell:
    """What holds for a wrapper in all its settings."""
    if column in ("chunks", "vmap"):
        return Cell(False, GIVEN if column == "chunks" else ALONE)
    if column != "resume" and wrapper.asks_rows:
        return Cell(False, WHOLE)
    if column.endswith("processes") and wrapper.stochastic:
        return Cell(True, "with the ranks' random generators in one state")
    return Cell(True)


def on_a_rank(jobs: Sequence[tuple[str, Recipe, torch.dtype]]) -> list[list[list[Step]]]:
    """What every job gives on this rank, with its rows whole and in micro-batches."""
    ways = [functools.partial(over_ranks, micro=micro) for micro in (False, True)]
    return [[trained(recipe, dtype, way) for way in ways] for _, recipe, dtype in jobs]


def trained(recipe: Recipe, dtype: torch.dtype, way: Way, *, stop_after: int | None = None) -> list[Step]:
    """Value and weights of each step; at a stop all is saved and loaded into fresh objects."""
    of_numbers = reads_rows(recipe.wrapper)
    objective = Objective(SquaredLoss() if of_numbers else CrossEntropyLoss())

    def fresh() -> tuple[nn.Module, Wrapper]:
        model = Model(1 if of_numbers else CLASSES, of_numbers, dtype, None)
        return model, recipe.build(SGD(model.parameters(), lr=0.05, momentum=0.5), model)

    model, optimizer = fresh()
    steps = []
    for number, batch in enumerate(2 * batches_of(objective, dtype, repeats=False, ignored=True)):
        if number == stop_after:
            states = saved_and_loaded([model.state_dict(), optimizer.state_dict()])
            model, optimizer = fresh()
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        # Ranks whose generators are in one state, as what they draw together asks for.
        torch.manual_seed(number)
        value = take_step(optimizer, model, batch["x"], functools.partial(way, objective, model, batch, number))
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        steps.append({"value": value.detach().clone(), "weights": weights})
    return steps
