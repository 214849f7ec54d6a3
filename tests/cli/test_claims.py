import json
import re
import sys
from pathlib import Path

from lossworks import catalog

KEPT = Path(catalog.__file__).with_name("claims.json")


def test_claims_are_listed(cli):
    result = cli("claims")
    assert result.code == 0
    assert re.search(r"^zhu2023ldr: (shown|not shown)$", result.out, re.MULTILINE)


def test_every_kept_claim_is_listed_with_its_outcome_and_then_where_the_experiments_are(cli):
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    states = [f"{key}: {'shown' if record['shown'] else 'not shown'}" for key, record in kept.items()]
    assert {": shown", ": not shown"} == {re.search(": .*", state)[0] for state in states}
    printed = cli("claims").out.splitlines()
    assert printed[: len(states)] == states
    assert "`python -m claims run KEY`" in " ".join(printed[len(states) :])
    assert cli("claims", "--quiet").out.splitlines() == states


def test_the_document_of_claims_is_what_is_kept(cli):
    assert json.loads(cli("claims", "--json").out) == list(json.loads(KEPT.read_text(encoding="utf-8")).values())


def test_the_claims_are_listed_where_no_experiments_are_installed(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "claims", None)  # which makes an import of it fail
    assert cli("claims").code == 0


def test_claims_takes_no_arguments_and_says_so(cli):
    result = cli("claims", "run")
    assert result.code == 2
    assert "unexpected extra argument" in result.one_line()
