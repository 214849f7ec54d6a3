import itertools

import pytest
import torch
from torch.testing import assert_close

from lossworks.roles import Part, held_back, remember_over_ranks
from lossworks.roles.memory import MERGES, merge_rows

INDEX = torch.tensor([3, 0, 3, -1, 5, 3, 0, 2])
VALUES = torch.tensor([1.0, -2.0, 4.0, 7.0, float("nan"), 2.0, 5.0, float("inf")])


def by_hand(memory, index, values, merge):
    result = memory.clone()
    for row in range(len(memory)):
        own = [float(v) for i, v in zip(index, values, strict=True) if int(i) == row and bool(v.isfinite())]
        if own:
            rule = {
                "amin": min(own),
                "amax": max(own),
                "mean": sum(own) / len(own),
                "sum": float(memory[row]) + sum(own),
            }
            result[row] = rule[merge]
    return result


@pytest.mark.parametrize("merge", MERGES)
def test_is_the_rule_row_by_row_in_any_order(merge, generator):
    before = torch.arange(10.0, 16.0)
    wanted = by_hand(before, INDEX, VALUES, merge)
    for _ in range(5):
        order = torch.randperm(len(INDEX), generator=generator)
        memory = before.clone()
        merge_rows(memory, INDEX[order], VALUES[order], merge)
        assert_close(memory, wanted)


@pytest.mark.parametrize("merge", MERGES)
def test_rows_of_vectors_are_merged_entry_by_entry(merge, generator):
    before = torch.randn(6, 2, generator=generator)
    values = torch.randn(8, 2, generator=generator)
    memory = before.clone()
    merge_rows(memory, INDEX, values, merge)
    for column in range(2):
        assert_close(memory[:, column], by_hand(before[:, column], INDEX, values[:, column], merge))


@pytest.mark.parametrize("merge", MERGES)
def test_stacks_under_vmap(merge, generator):
    before = torch.randn(3, 6, generator=generator)
    values = torch.randn(3, 8, generator=generator)

    def merged(memory, own):
        memory = memory.clone()
        merge_rows(memory, INDEX, own, merge)
        return memory

    together = torch.func.vmap(merged)(before, values)
    assert_close(together, torch.stack([merged(*pair) for pair in zip(before, values, strict=True)]))


class Counted(Part):
    memories = {"seen": "sum", "best": "amax"}  # noqa: RUF012  (as a user would write it)

    def __init__(self):
        super().__init__()
        self.seen, self.best = torch.zeros(6), torch.zeros(6)


def test_what_is_held_back_is_written_at_once_or_not_at_all():
    part, offers = Counted(), []
    with held_back(part, offers):
        for index, values in zip(INDEX.split(3), VALUES.split(3), strict=True):
            part.remember("seen", index, torch.ones(len(index)))
            part.remember("best", index, values)
    assert not part.seen.any()
    with held_back(part):
        part.remember("seen", INDEX, VALUES)
    assert not part.seen.any()
    remember_over_ranks(part, offers, None)
    assert part.seen.tolist() == [2, 0, 1, 3, 0, 1]
    assert part.best.tolist() == [5, 0, 0, 4, 0, 0]


def test_an_unknown_merge_is_refused_where_the_part_is_written():
    for merge in ("min", "last"):
        with pytest.raises(ValueError, match=r"Last.memories must be one of 'amin', 'amax', 'mean', 'sum'"):
            type("Last", (Part,), {"memories": {"lam": merge}})


def test_merging_parts_one_after_the_other_is_merging_the_whole_where_nothing_is_replaced():
    for cut, merge in itertools.product(range(9), ("sum",)):
        memory = torch.zeros(6)
        merge_rows(memory, INDEX[:cut], VALUES[:cut], merge)
        merge_rows(memory, INDEX[cut:], VALUES[cut:], merge)
        assert_close(memory, by_hand(torch.zeros(6), INDEX, VALUES, merge))


@pytest.mark.parametrize(
    ("merge", "dtype", "wanted"),
    [
        ("mean", torch.int64, "be floating-point"),
        ("mean", torch.bool, "be floating-point"),
        *((merge, torch.bool, "hold real numbers") for merge in ("amin", "amax", "sum")),
        ("sum", torch.complex64, "hold real numbers"),
    ],
)
@pytest.mark.parametrize("index", [[0, 1], [0, 0]])
def test_a_memory_that_cannot_hold_what_is_merged_is_refused(merge, dtype, wanted, index):
    memory = torch.zeros(3, dtype=dtype)
    with pytest.raises(TypeError, match=f"a memory merged by '{merge}' must {wanted}, got {dtype}"):
        merge_rows(memory, torch.tensor(index), torch.tensor([3, 4]).to(dtype), merge)
    assert not memory.any()


@pytest.mark.parametrize("merge", ["amin", "amax", "sum"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64])
def test_integers_are_merged_as_numbers_are(merge, dtype):
    before = torch.tensor([9, 9, 0, 9, 0, 9])
    index, values = torch.tensor([3, 1, 3, -1, 5, 3, 1, 0]), torch.tensor([1, 2, 4, 0, 11, 3, 5, 0])
    memory = before.to(dtype, copy=True)
    merge_rows(memory, index, values.to(dtype), merge)
    assert torch.equal(memory.long(), by_hand(before.double(), index, values.double(), merge).long())
