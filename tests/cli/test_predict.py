import io
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import FAST, ROWS, columns

import lossworks as lw


def test_predict_writes_csv_of_labels_and_probabilities(cli, finished):
    result = cli("predict", finished / "run", finished / "customers.csv")
    assert result.code == 0
    frame = pl.read_csv(result.out.encode())
    assert frame.columns == ["predicted_churn", "probability_no", "probability_yes"]
    expected = lw.load(finished / "run").predict_proba(finished / "customers.csv")
    np.testing.assert_array_equal(frame.select("probability_no", "probability_yes").to_numpy(), expected)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_writes_a_file(cli, finished, suffix):
    result = cli("predict", finished / "run", finished / "customers.csv", "--out", f"new{suffix}")
    assert result == (0, "", "")
    read = pl.read_csv if suffix == ".csv" else pl.read_parquet
    assert read(f"new{suffix}").height == ROWS
    assert [path.name for path in Path().iterdir()] == [f"new{suffix}"]


def test_predict_quotes_formulas(cli):
    data = columns()
    signs = {"yes": "=yes", "no": "@no"}
    pl.DataFrame(data | {"churn": [signs[label] for label in data["churn"]]}).write_csv("signs.csv")
    assert cli("compare", "signs.csv", "--target", "churn", "--out", "run", "--quiet", *FAST).code == 0
    lines = cli("predict", "run", "signs.csv").out.splitlines()
    assert lines[0] == '"predicted_churn","probability_=yes","probability_@no"'
    assert {line.split(",")[0] for line in lines[1:]} <= {'"\'=yes"', '"\'@no"'}


def test_predict_prints_the_bytes_that_it_would_write(cli, monkeypatch):
    data = columns()
    pl.DataFrame(data | {"churn": [{"yes": "jä€"}.get(label, label) for label in data["churn"]]}).write_csv("odd.csv")
    assert cli("compare", "odd.csv", "--target", "churn", "--out", "run", "--quiet", *FAST).code == 0
    assert cli("predict", "run", "odd.csv", "--out", "new.csv").code == 0
    monkeypatch.setattr(sys, "stdout", screen := io.TextIOWrapper(io.BytesIO(), "latin-1"))
    assert cli("predict", "run", "odd.csv").code == 0
    assert screen.buffer.getvalue() == Path("new.csv").read_bytes()


def test_no_name_of_a_class_or_column_steers_the_terminal(cli):
    """A file has the names as they are; what is printed shows what would act, and leaves other letters alone."""
    data = columns()
    names = {"yes": "\x1b]0;owned\x07\x1b[31mred", "no": "n\u202eo \u00a0\tä\rover"}
    frame = pl.DataFrame(data | {"churn": [names[label] for label in data["churn"]]}).rename({"churn": "a\x9bb"})
    frame.write_parquet("odd.parquet")
    result = cli("compare", "odd.parquet", "--target", "a\x9bb", "--out", "run", *FAST)
    assert result.code == 0
    assert not set("\x07\x9b\u202e") & set(result.out + result.err)
    assert "[31mred" not in (result.out + result.err).replace("\\x1b[31mred", "")
    printed = cli("predict", "run", "odd.parquet").out
    assert not set("\x1b\x07\x9b\u202e\r") & set(printed)
    assert printed.startswith('"predicted_a\\x9bb","probability_')
    assert "probability_\\x1b]0;owned\\x07\\x1b[31mred" in printed
    assert "probability_n\\u202eo \u00a0\tä\\rover" in printed
    assert cli("predict", "run", "odd.parquet", "--out", "new.parquet").code == 0
    assert set(pl.read_parquet("new.parquet")["predicted_a\x9bb"]) <= set(names.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "{data}"], "no such run folder"),
        (["{run}", "nowhere.csv"], "nowhere.csv does not exist"),
        (["{run}", "short.csv"], "lacks the columns 'b', 'day'"),
        (["{run}", "{data}", "--out", "new.xlsx"], "written as .csv or .parquet"),
        (["{run}", "{data}", "--out", "no/folder/new.csv"], "cannot be written (No such file or directory)"),
        (["{run}", "{data}", "--model", "none.py:build"], "no such file none.py"),
        (["{run}"], "Missing argument"),
    ],
)
def test_predict_says_what_is_wrong_in_one_line(cli, finished, arguments, says):
    pl.DataFrame({"a": [1.0], "team": ["red"]}).write_csv("short.csv")
    places = {"run": finished / "run", "data": finished / "customers.csv"}
    result = cli("predict", *(argument.format(**places) for argument in arguments))
    assert result.code == 2
    assert says in result.one_line()
    assert [path.name for path in Path().iterdir()] == ["short.csv"]


def test_a_run_folder_of_another_version_is_refused(cli, csv, finished):
    Path("run").mkdir()
    for name in ("model.json", "model.safetensors"):
        Path("run", name).write_bytes((finished / "run" / name).read_bytes())
    described = json.loads(Path("run/model.json").read_text())
    Path("run/model.json").write_text(json.dumps(described | {"version": 2}))
    result = cli("predict", "run", csv)
    assert result.code == 2
    assert "run/model.json: is of version 2, this lossworks reads 1; train it again" in result.one_line()
