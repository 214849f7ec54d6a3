"""The claims: their runner, what is kept, the LDR table and the page."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import claims
from claims import __main__ as command
from claims import document, ldr_table
from claims.record import Measurement
from claims.training import flip_labels
from lossworks import catalog
from lossworks.catalog import papers
from lossworks.checks import InputError

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"


def invoke(monkeypatch, capsys, *arguments):
    """The exit code of ``python -m claims`` and what it prints on both streams."""
    monkeypatch.setattr("sys.argv", ["claims", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


@pytest.fixture
def quick(monkeypatch):
    """One claim's experiment, done at once."""
    measurement = Measurement(shown=False, measured="nothing [yet]", numbers={"a": [0.5]}, seeds=2)
    monkeypatch.setattr("claims.colombo2022best.measure", lambda: measurement)
    return "colombo2022best"


@pytest.mark.parametrize("key", claims.keys())
def test_every_claim_is_its_papers_with_a_rule_and_a_measurement(key):
    module = importlib.import_module(f"claims.{key}")
    assert key == module.PAPER
    assert any(digit in module.RULE for digit in "0123456789") or "half" in module.RULE
    assert callable(module.measure)
    assert papers()[key].claim


def test_the_kept_results_are_of_exactly_the_claims_under_their_present_rules():
    kept = claims.results()
    assert sorted(kept) == sorted(claims.keys())
    for key, record in kept.items():
        assert record["rule"] == importlib.import_module(f"claims.{key}").RULE
        assert record["claimed"] == papers()[key].claim


def test_a_result_is_kept_beside_those_that_are_there(quick, tmp_path):
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"zzz": {"shown": True}}))
    (record,) = claims.run([quick], path)
    assert record["shown"] is False
    assert record["seeds"] == 2
    assert claims.results(path) == {quick: record, "zzz": {"shown": True}}
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]


def test_the_command_line_shows_claimed_beside_measured(quick, tmp_path, monkeypatch, capsys):
    path = tmp_path / "kept.json"
    code, printed, _ = invoke(monkeypatch, capsys, "run", quick, "--results", str(path))
    assert code == 0
    assert "nothing [yet]" in " ".join(printed.replace("│", " ").split())
    assert quick in claims.results(path)


def test_an_unknown_claim_is_one_line_with_the_nearest_and_nothing_is_measured(tmp_path, monkeypatch, capsys):
    path = tmp_path / "kept.json"
    code, printed, said = invoke(monkeypatch, capsys, "run", "zhu2023ld", "--results", str(path))
    assert code == 2
    assert not printed
    assert said.strip().count("\n") == 0
    assert "'zhu2023ld'; did you mean 'zhu2023ldr'?" in said
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("gone/kept.json", None, "cannot be written"),
        ("kept.json", "{", "cannot be read as results"),
        ("kept.json", "[]", "not results"),
    ],
)
def test_a_file_that_cannot_hold_results_is_named_before_measuring(tmp_path, monkeypatch, name, content, wanted):
    monkeypatch.setattr("claims.colombo2022best.measure", lambda: pytest.fail("it measured"))
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"kept.json: .*{wanted}"):
        list(claims.run(["colombo2022best"], path))


def test_list_tells_of_every_claim_whether_it_showed(monkeypatch, capsys):
    code, printed, _ = invoke(monkeypatch, capsys, "list")
    assert code == 0
    states = {key: "shown" if record["shown"] else "not shown" for key, record in claims.results().items()}
    assert printed.splitlines() == [f"{key}: {states[key]}" for key in sorted(states)]


def test_the_catalog_and_the_lossworks_command_tell_what_is_kept():
    kept = claims.results()
    assert {key: (claim.shown, claim.measured, claim.numbers) for key, claim in catalog.claims().items()} == {
        key: (record["shown"], record["measured"], record["numbers"]) for key, record in kept.items()
    }
    *lines, blank, where = catalog.claims_text().splitlines()
    assert lines == [f"{key}: {'shown' if record['shown'] else 'not shown'}" for key, record in kept.items()]
    assert blank == ""
    assert "python -m claims run" in where


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "--nonsense"]])
def test_a_bad_command_is_one_line(monkeypatch, capsys, arguments):
    code, printed, said = invoke(monkeypatch, capsys, *arguments)
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert "nonsense" in said


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("claims.colombo2022best.measure", interrupted)
    assert invoke(monkeypatch, capsys, "run", "colombo2022best")[::2] == (130, "stopped\n")


def test_the_page_is_what_the_kept_results_say(tmp_path, monkeypatch, capsys):
    page = tmp_path / "claims.md"
    assert invoke(monkeypatch, capsys, "document", "--out", str(page))[0] == 0
    assert page.read_text(encoding="utf-8") == document.markdown() == PAGE.read_text(encoding="utf-8")
    for key, record in claims.results().items():
        assert f"- **Rule**: {record['rule']}\n- **Measured**: {record['measured']}" in page.read_text(encoding="utf-8")
        assert f"## {key}\n" in page.read_text(encoding="utf-8")


def test_the_kept_tables_ranks_follow_from_its_accuracies_counted_by_hand():
    table = ldr_table.results()
    assert len(table["tasks"]) == 12
    assert table["rule"] == ldr_table.RULE
    places = {name: [] for name in ldr_table.CANDIDATES}
    for task in table["tasks"]:
        means = {name: round(sum(score["accuracies"]) / 5, 9) for name, score in task["losses"].items()}
        assert set(means) == set(places)
        for name, mean in means.items():
            better, equal = (sum(other > mean for other in means.values()), sum(o == mean for o in means.values()))
            places[name].append(better + (equal + 1) / 2)
    assert table["mean_rank"] == pytest.approx({name: sum(ranks) / 12 for name, ranks in places.items()})
    assert table["worst_rank"] == {name: max(ranks) for name, ranks in places.items()}
    assert list(table["mean_rank"].values()) == sorted(table["mean_rank"].values())
    assert table["shown"] == ("ALDR-KL" in list(table["mean_rank"])[:5])
    assert ldr_table.rank(table["tasks"]) == {key: table[key] for key in ("shown", "mean_rank", "worst_rank")}


def test_the_table_in_miniature_learns_with_all_fifteen_losses_each_apart_from_the_others(monkeypatch):
    monkeypatch.setattr(ldr_table, "DATA", {"wine": ldr_table.DATA["wine"]})
    monkeypatch.setattr(ldr_table, "NOISE", {"clean": ("symmetric", 0.0)})
    single = {name: replace(loss, grid=loss.grid[-1:]) for name, loss in ldr_table.CANDIDATES.items()}
    monkeypatch.setattr(ldr_table, "CANDIDATES", single)
    (task,) = ldr_table.measure(seeds=2, steps=20)["tasks"]
    assert len(task["losses"]) == 15
    assert all(np.mean(score["accuracies"]) > 0.8 for score in task["losses"].values())
    few = {name: single[name] for name in ("ALDR-KL", "CE")}
    monkeypatch.setattr(ldr_table, "CANDIDATES", few)
    (again,) = ldr_table.measure(seeds=2, steps=20)["tasks"]
    assert again["losses"] == {name: task["losses"][name] for name in few}


def test_the_tables_tests_are_clean_and_apart_from_its_noisy_training_rows():
    task = ldr_table.make_task("digits", "asymmetric 30%", seeds=2)
    for seed in range(2):
        rows = [task.fit[seed], task.inner[seed], task.test[seed]]
        assert torch.cat(rows).sort().values.tolist() == list(range(1797 * seed, 1797 * (seed + 1)))
        wrong = task.noisy[rows[0]] != task.clean[rows[0]]
        assert wrong.double().mean() == pytest.approx(0.3, abs=0.06)
        assert ((task.noisy - task.clean) % 10 == 1)[rows[0]][wrong].all()


def test_flipped_labels_are_another_class_at_the_rate():
    labels = torch.arange(20_000) % 4
    flipped = flip_labels(labels, 0.3, 4, seed=0)
    wrong = (flipped - labels)[flipped != labels] % 4
    assert len(wrong) / 20_000 == pytest.approx(0.3, abs=0.015)
    assert (wrong.bincount(minlength=4)[1:] / len(wrong)).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
