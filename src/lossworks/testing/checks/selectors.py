"""The checks of a selector, on the call that its docstring makes, with more rows."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from lossworks.roles import Selector
from lossworks.testing.calls import Call, documented_call, named_arguments
from lossworks.testing.checks.functions import made
from lossworks.testing.inputs import expect_error

__all__ = [
    "answers_each_row",
    "clear_errors",
    "example",
    "input_left_alone",
    "one_row",
    "permutation_equivariant",
    "ties_decided_by_rule",
    "used",
]

ROWS = 40


def example(selector: Selector) -> Call:
    """The call of the selector's docstring, with columns of more rows; features where it has none of a column."""
    call = documented_call(selector)
    generator = torch.Generator().manual_seed(0)
    known = _columns(selector, call)
    missing = {name: torch.zeros(1, 2) for name in selector.rows if name not in known}
    return call.with_arguments({name: _rows(column, generator) for name, column in (known | missing).items()})


def _columns(selector: Selector, call: Call) -> dict[str, Tensor]:
    """What the call is given with one entry a row."""
    named = named_arguments(call)
    return {name: named[name] for name in selector.rows if isinstance(named.get(name), Tensor)}


def _rows(column: Tensor, generator: torch.Generator) -> Tensor:
    shape = (ROWS, *column.shape[1:])
    if column.is_floating_point():
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        high = torch.arange(ROWS).reshape(-1, *(1 for _ in shape[1:])) % 3 == 0
        return (drawn + 3 * high).to(column.dtype)
    if column.dtype == torch.bool:
        return torch.arange(ROWS) % 3 == 0
    return torch.randint(int(column.min()), int(column.max()) + 1, shape, generator=generator)


def used(selector: Selector) -> Any:
    """What the selector answers to the example."""
    return made(replace(example(selector), owner=selector))


def _answer(call: Call) -> list[Tensor]:
    """The tensors of the answer, always with the same draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answer = call.fresh().made()
    return [part for part in (answer if isinstance(answer, tuple) else (answer,)) if isinstance(part, Tensor)]


def answers_each_row(selector: Selector) -> None:
    """The answer has one entry a row, or the numbers of rows, each once; and no NaN."""
    for part in _answer(example(selector)):
        if selector.picks:
            assert part.dtype == torch.int64, f"numbers of rows must be int64, they are {part.dtype}"
            assert len(part.unique()) == len(part), "a row is picked twice"
            assert bool(((part >= 0) & (part < ROWS)).all()), f"the rows {part.tolist()} are not all in [0, {ROWS})"
        else:
            assert part.shape[:1] == (ROWS,), f"{ROWS} rows have an answer of shape {tuple(part.shape)}"
            assert not bool(part.isnan().any()), "the answer has NaN"


def permutation_equivariant(selector: Selector) -> None:
    """Rows in another order have the same answers, in that order."""
    call = example(selector)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    shuffled = call.with_arguments({name: column[order] for name, column in _columns(selector, call).items()})
    for got, wanted in zip(_answer(shuffled), _answer(call), strict=True):
        if selector.picks:
            assert torch.equal(order[got], wanted), "rows in another order are picked otherwise"
        else:
            assert_close(got, wanted[order], msg="rows in another order have other answers: {}".format)


def ties_decided_by_rule(selector: Selector) -> None:
    """Rows of which the same is known have one answer; where only some of them are picked, they are the first."""
    call = example(selector)
    columns = _columns(selector, call)
    if selector.picks:
        for part in _answer(call.with_arguments({name: torch.ones_like(column) for name, column in columns.items()})):
            assert torch.equal(part, torch.arange(len(part))), f"of rows that are all alike {part.tolist()} are picked"
        return
    shuffle = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    for alike in (2, 3, ROWS):
        first = torch.arange(ROWS) // alike * alike
        tied = call.with_arguments({name: column[first][shuffle] for name, column in columns.items()})
        for part in _answer(tied):
            back = part[shuffle.argsort()]
            assert_close(back, back[first], msg="rows of which the same is known have two answers: {}".format)


def input_left_alone(selector: Selector) -> None:
    """What the selector is given is afterwards what it was."""
    call = example(selector).fresh()
    columns = _columns(selector, call)
    before = {name: column.clone() for name, column in columns.items()}
    torch.manual_seed(0)
    call.made()
    for name, column in columns.items():
        assert torch.equal(column, before[name]), f"{name} was changed in place"


def one_row(selector: Selector) -> None:
    """A single row has an answer."""
    call = example(selector)
    for part in _answer(call.with_arguments({n: column[:1] for n, column in _columns(selector, call).items()})):
        assert len(part) == 1, f"one row has an answer of shape {tuple(part.shape)}"


def clear_errors(selector: Selector) -> None:
    """Columns of another dtype or length, and words, raise errors that name one of the columns."""
    call = example(selector)
    columns = {name: _columns(selector, call)[name] for name in _columns(selector, documented_call(selector))}
    for name, column in columns.items():
        wrong = column.long() if column.is_floating_point() else column.double()
        for bad in ("rows", wrong):
            expect_error(name, call.fresh().with_arguments({name: bad}).made)
    if len(columns) > 1:
        for name, column in columns.items():
            short = call.fresh().with_arguments({name: column[:-1]})
            _expect_one_of(list(columns), short)


def _expect_one_of(names: list[str], call: Call) -> None:
    try:
        call.made()
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in names), f"the error must name a column, it says: {error}"
    else:
        raise AssertionError("columns of two lengths raised nothing")
