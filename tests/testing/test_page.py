"""What the site says of one part: its checks, and its row of the table of exactness, drawn without running anything."""

import re
from pathlib import Path

import pytest

from lossworks.catalog import parts
from lossworks.testing.contract import row_of
from lossworks.testing.inputs import driven
from lossworks.testing.page import contract_rows, exactness_row
from lossworks.testing.subjects import subject_of

PAGE = (Path(__file__).parents[2] / "docs" / "exactness.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["LDRLoss", "KLDRO", "PGD", "WeightMagnitudePenalty", "SRATObjective", "SAM", "paired_test"]
)
def test_every_check_of_the_role_is_there_with_a_sentence_and_a_reason_where_it_does_not_apply(name):
    part = parts()[name].part
    rows = contract_rows(name)
    assert [row.check for row in rows] == list(row_of(subject_of(part).part).checks)
    settings = len(driven(part))
    for row in rows:
        assert row.says.endswith("."), row
        assert bool(row.reason) == (row.settings < settings), row


def test_the_checks_that_need_an_update_or_processes_count_as_run():
    assert {row.check: row.settings for row in contract_rows("SAM")}["written_out"] == 2
    assert {row.check: row.settings for row in contract_rows("WeightMagnitudePenalty")}[
        "sharded_weights_count_once"
    ] == 3


def test_a_part_that_does_not_exist_is_refused_with_the_nearest():
    for draw in (contract_rows, exactness_row):
        with pytest.raises(KeyError, match="LDRLoss"):
            draw("LDRLos")


def test_every_row_of_the_page_is_the_row_of_its_part():
    notes = dict(re.findall(r"^(\d+)\. (.+)\.$", PAGE, flags=re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) > 90
    for name, settings, cells in rows:
        row = exactness_row(name)
        assert row is not None
        assert row.settings == int(settings), name
        for written, cell in zip(cells.split(" | "), row.cells.values(), strict=True):
            number = re.search(r"\[(\d+)\]", written)
            assert written.startswith("exact") == cell.exact, name
            assert (notes[number[1]].lower() if number else "") == cell.note.lower(), name


def test_what_takes_no_steps_has_no_row():
    assert exactness_row("paired_test") is None
