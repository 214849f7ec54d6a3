"""What the site says of contract and exactness: the page of the whole catalog, and the rows of one part."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from lossworks.catalog import show
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Calibrator, Loss, Penalty, Perturbation, Weighting, Wrapper
from lossworks.testing.contract import row_of
from lossworks.testing.exactness import COLUMNS, Cell, catalog_parts, cell_of, exactness_matrix, is_measured
from lossworks.testing.inputs import Recipe, driven, instances
from lossworks.testing.models import is_layer, is_stochastic, remembers, sees_the_whole
from lossworks.testing.optimizers import catalog_optimizers, optimizer_cell, optimizer_matrix
from lossworks.testing.ranks import Ranks
from lossworks.testing.subjects import subject_of

__all__ = ["ContractRow", "ExactnessRow", "catalog_page", "contract_rows", "exactness_row", "said_of_splits"]


def catalog_page(ranks: Sequence[Ranks]) -> str:
    """Measure every part and every optimizer, and write the page of exactness.

    Raises:
        AssertionError: a part or optimizer is not exact although it must be; the message lists them all.
    """
    parts, optimizers = catalog_parts(), catalog_optimizers()
    matrix = exactness_matrix(parts, ranks) | optimizer_matrix(optimizers, ranks)
    return _drawn(matrix, {**parts, **optimizers})


def _drawn(matrix: Mapping[str, Mapping[str, Cell]], parts: Mapping[str, Sequence[nn.Module | Recipe]]) -> str:
    """The matrix as a page of the site."""
    notes: dict[str, int] = {}
    tables: dict[str, list[str]] = {}
    roles = list(dict.fromkeys(_role(settings[0]) for settings in parts.values()))
    for name in sorted(matrix, key=lambda name: roles.index(_role(parts[name][0]))):
        row, part, cells = matrix[name], parts[name][0], []
        for column in COLUMNS:
            cell = row[column]
            number = f"[{notes.setdefault(cell.note, len(notes) + 1)}]" if cell.note else ""
            cells.append(f"exact {number}".strip() if cell.exact else number)
        tables.setdefault(_role(part), []).append(f"| `{name}` | {len(parts[name])} | {' | '.join(cells)} |")
    lines = ["# Exactness", INTRODUCTION]
    for role, rows in tables.items():
        head = [f"| {role} | settings | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
        lines.append("\n".join([*head, *rows]))
    lines.append("## Notes")
    lines.append("\n".join(f"{number}. {note[0].upper()}{note[1:]}." for note, number in notes.items()))
    lines.append("## What the docstrings say")
    lines.append("Of each part that a split changes, or that must see the whole batch:")
    lines.append("\n".join(f"- `{name}`: {said}" for name in matrix if (said := said_of_splits(parts[name][0]))))
    return "\n\n".join(lines) + "\n"


INTRODUCTION = """
A training run gives the same numbers however its work is split. Every part of the catalog, in every setting that it
declares, trains a small model for some steps in each of these ways, and value, gradients and buffers of every step are
compared with those of one process that was given each batch whole: *exact* is a difference of at most 1e-9 in float64
and 1e-5 in float32 (of the largest number where that is above 1), and none at all for *resume*. The batches are the
awkward kind: rows that come twice, rows that are ignored, sample weights, uneven and empty shares, ranks without a row
of some class. Of an optimizer the weights after each step are compared in place of gradients and buffers. A number
refers to what must be known; alone, to why the part is by nature not exact there, or has no place there.

- **2 and 3 processes**: real ones, over gloo, each with its rows and `process_group=`, whole and (in float64) in
  micro-batches.
- **micro-batches**: gradient accumulation by `Objective.micro_batches`, and by `total=` where the rows stand alone.
- **chunks**: the last layer and the loss a chunk of rows at a time, so that the outputs are never there as a whole.
- **vmap**: three models stacked under `torch.func.vmap`, against each alone.
- **resume**: stopped in the middle of several steps with an optimizer, saved, loaded into fresh objects, gone on with.

Hold a part of your own to it with `lossworks.testing.check_exactness(part)`. The tests fail when this page isn't what
they measure; `python -m lossworks.testing --write docs/exactness.md` draws it anew.
""".strip()


def _role(part: nn.Module | Recipe) -> str:
    if isinstance(part, Recipe):
        return "optimizer"
    roles = {
        Loss: "loss",
        BatchLoss: "loss",
        Weighting: "weighting",
        Perturbation: "perturbation",
        Penalty: "penalty",
        Objective: "objective",
        Calibrator: "calibrator",
    }
    found = next((name for role, name in roles.items() if isinstance(part, role)), None)
    return found or ("layer" if is_layer(part) else "risk")


class ContractRow(NamedTuple):
    """One check of the contract on one part.

    Attributes:
        check: The name of the check.
        says: The sentence that the check asserts.
        settings: The number of the part's settings in which the check runs.
        reason: Why the check does not apply in the other settings; empty if it runs in all.
    """

    check: str
    says: str
    settings: int
    reason: str


def contract_rows(name: str) -> list[ContractRow]:
    """The checks of the contract for the part of this name, also those that do not apply; no check is run.

    Args:
        name: The part's name in the catalog.

    Raises:
        KeyError: there is no part of this name.

    >>> [row.settings for row in contract_rows("LDRLoss") if row.check == "gradcheck"]
    [5]
    """
    part = show(name).part
    subjects = [subject_of(part, setting) for setting in driven(part)]
    # What the suite has and a reader's own call may lack: an update written out, and processes.
    subjects = [replace(subject, update=_not_run, ranks=_not_run) for subject in subjects]
    rows = []
    for check_name, check in row_of(subjects[0].part).checks.items():
        with torch.random.fork_rng(devices=[]):
            reasons = [check.reason(subject) for subject in subjects]
        said = next((reason for reason in reasons if reason is not None), "")
        rows.append(ContractRow(check_name, check.says, reasons.count(None), said))
    return rows


def _not_run(*_: object) -> Any:
    raise NotImplementedError("the rows of the contract are drawn without running it")


class ExactnessRow(NamedTuple):
    """One part's row in the table of exactness.

    Attributes:
        role: The part's role in the formula.
        settings: The number of settings in which the part is measured.
        cells: The result in each column of the table.
        said: What the part's docstring says about a split; empty if a split changes nothing.
    """

    role: str
    settings: int
    cells: Mapping[str, Cell]
    said: str


def exactness_row(name: str) -> ExactnessRow | None:
    """The row of the part of this name as the tests measure it, or None if it is not in the table; nothing is run.

    Args:
        name: The part's name in the catalog.

    Raises:
        KeyError: there is no part of this name.

    >>> str(exactness_row("LDRLoss").cells["vmap"])
    'exact'
    """
    entry = show(name)
    first: nn.Module | Recipe
    if is_measured(entry):
        built = list(instances(entry.part))
        first, cells = built[0], {column: cell_of(built, column) for column in COLUMNS}
    elif inspect.isclass(entry.part) and issubclass(entry.part, Wrapper):
        first = Recipe(entry.part, entry.part.settings[0])
        cells = {column: optimizer_cell(entry.part, column) for column in COLUMNS}
    else:
        return None
    return ExactnessRow(_role(first), len(driven(entry.part)), cells, said_of_splits(first))


SAYS_SO = re.compile(r"\b(split|splits|ranks|micro-batch|micro-batches)\b")


def said_of_splits(part: nn.Module | Recipe) -> str:
    """The sentences of a part's docstring about what a split does to it, if it is not exact by itself everywhere."""
    described = part.wrapper if isinstance(part, Recipe) else type(part)
    if isinstance(part, Calibrator):
        return ""
    if isinstance(part, nn.Module):
        couples = sees_the_whole(part) or getattr(part, "couples_batch", False)
        if not (is_stochastic(part) or remembers(part) or couples):
            return ""
    purpose = (inspect.getdoc(described) or "").split("Args:")[0]
    text = " ".join(re.sub(r"\.\. math::\n(?: +.*\n|\n)+", "", purpose).split())
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z:`])", text)
    said = " ".join(sentence for sentence in sentences if SAYS_SO.search(sentence))
    return re.sub(r":\w+:`~?\.?([^`]*)`", r"`\1`", said).replace("``", "`")
