import json

import pytest


def test_find_finds_parts_for_every_trouble_that_is_described(cli):
    result = cli("find", "my labels are noisy and some classes are rare")
    assert result.code == 0
    assert "noisy labels" in " ".join(result.out.split())
    assert "imbalance" in result.out
    assert "ClassBalanced" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_find_without_a_match_says_what_there_is(cli):
    result = cli("find", "zzz")
    assert result.code == 1
    assert "noisy labels" in " ".join(result.out.split())


@pytest.mark.parametrize("limit", ["-1", "9" * 20])
def test_find_refuses_a_limit_that_is_none(cli, limit):
    result = cli("find", "noisy labels", "--limit", limit)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith("error: limit must be ")


def test_find_without_a_match_is_an_empty_document_and_the_same_exit_code(cli):
    assert cli("find", "zzz", "--json") == (1, "[]\n", "")
    assert cli("find", "zzz", "--quiet") == (1, "", "")


def test_find_prints_the_same_parts_for_people_for_scripts_and_in_quiet(cli):
    asked = ["find", "my labels are noisy and some classes are rare", "--limit", "6"]
    document = json.loads(cli(*asked, "--json").out)
    names = [part["name"] for part in document]
    assert len(names) == 6
    assert cli(*asked, "--quiet").out.splitlines() == names
    headings = [line for line in cli(*asked).out.splitlines() if not line.startswith((" ", "`"))]
    assert [line.split()[0] for line in headings] == names
    assert {term for part in document for term in part["terms"]} == {"noisy labels", "imbalance"}
    for part in document:
        assert set(part["terms"]) <= set(part["helps"])
