import inspect
import json
import sys

import pytest

from lossworks.catalog import parts
from lossworks.cli.show import _lines
from lossworks.losses import LDRLoss


def test_show_tells_of_one_part_and_its_papers(cli):
    result = cli("show", "LDRLoss")
    assert result.code == 0
    for told in ("lossworks.losses.LDRLoss", "Args:", "zhu2023ldr", "noisy labels"):
        assert told in result.out
    assert cli("show", "ldrloss").out == result.out


def test_show_prints_one_object_for_scripts_and_the_summary_alone_in_quiet(cli):
    document = json.loads(cli("show", "ldrloss", "--json").out)
    assert set(document) == {"name", "role", "path", "summary", "helps", "warns", "papers", "description"}
    assert document["name"] == "LDRLoss"
    assert document["description"] == inspect.getdoc(LDRLoss)
    (paper,) = document["papers"]
    assert set(paper) == {"key", "cite", "claim", "note", "measured"}
    assert (paper["key"], paper["measured"]["shown"]) == ("zhu2023ldr", True)
    assert cli("show", "LDRLoss", "--quiet").out == document["summary"] + "\n"


def test_what_was_measured_is_null_where_nothing_was(cli):
    papers = {paper["key"]: paper for paper in json.loads(cli("show", "SAM", "--json").out)["papers"]}
    assert papers["foret2021sam"]["measured"] is None
    assert "measured: shown. accuracy" in " ".join(cli("show", "LDRLoss").out.split())
    assert "measured:" not in cli("show", "SAM").out


def test_show_needs_no_experiments(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "claims", None)  # which makes an import of it fail
    assert cli("show", "LDRLoss").code == 0


@pytest.mark.parametrize("name", ["LDRLoss", "SAM", "EMATrajectoryObjective"])
def test_a_shown_part_fits_the_screen_with_its_examples_as_they_are(cli, name):
    lines = cli("show", name).out.splitlines()
    literal = [line for line in inspect.getdoc(parts()[name].part).splitlines() if line.startswith((">>> ", "... "))]
    assert literal
    assert set(literal) <= set(lines)
    assert max(len(line) for line in lines if "\\" not in line and line not in literal) <= 80


@pytest.mark.parametrize("width", [40, 80, 200])
def test_wrapping_changes_where_lines_end_and_no_word(width):
    for entry in parts().values():
        said = inspect.getdoc(entry.part)
        assert "\n".join(_lines(said, width)).split() == said.split()
