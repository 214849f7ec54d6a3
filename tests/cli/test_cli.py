import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import lossworks as lw
import lossworks_command
from lossworks import cli as tool
from lossworks.cli import main
from lossworks.comparison import Progress, Training

ROWS = 60
FAST = ["--objectives", "FocalLoss", "--folds", "2", "--repeats", "1", "--model", "linear"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder, with a short training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("lossworks.comparison.plan.default_training", lambda _: Training(16, 40, 10))

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["lossworks", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return run


def columns() -> dict[str, list]:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, ROWS)).round(3).tolist()
    churn = [
        "yes" if value + 0.3 * noise > 0.2 else "no" for value, noise in zip(a, random.normal(size=ROWS), strict=True)
    ]
    return {"a": a, "b": b, "team": ["red", "blue"] * (ROWS // 2), "churn": churn}


@pytest.fixture
def csv(tmp_path):
    pl.DataFrame(columns()).write_csv(tmp_path / "customers.csv")
    return "customers.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    pl.DataFrame(columns() | {"day": ["2024-01-02", "2024-03-04"] * (ROWS // 2)}).write_csv(folder / "customers.csv")
    lw.compare(
        folder / "customers.csv",
        "churn",
        objectives=["FocalLoss"],
        model="linear",
        folds=2,
        repeats=1,
        columns={"day": "date"},
        training=Training(16, 40, 10),
        out=folder / "run",
    )
    return folder


# What is said


def test_compare_says_the_answer_the_ranking_and_where_all_of_it_lies(cli, csv):
    result = cli("compare", csv, "--target", "churn", *FAST)
    assert result.code == 0
    assert "CrossEntropyLoss" in result.out
    assert "gradient boosting" in result.out
    assert "lossworks predict runs/churn-1 new.csv" in result.out
    assert Path("runs/churn-1/report.html").is_file()
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_second_run_takes_the_next_folder(cli, csv):
    for _ in range(2):
        assert cli("compare", csv, "--target", "churn", "--quiet", *FAST).code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["churn-1", "churn-2"]


def test_json_is_one_document_and_nothing_else(cli, csv):
    result = cli("compare", csv, "--target", "churn", "--json", *FAST)
    document = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result.err == ""
    assert {"answer", "winner", "metric", "partial", "ranking", "findings", "run"} <= set(document)
    assert {row["objective"] for row in document["ranking"]} == {"CrossEntropyLoss", "FocalLoss", "gradient boosting"}
    assert Path(document["run"], "model.json").is_file()


def test_quiet_is_the_answer_alone(cli, csv):
    result = cli("compare", csv, "--target", "churn", "--quiet", *FAST)
    assert result.err == ""
    assert len(result.out.splitlines()) == 1
    assert result.out.startswith(("No objective is shown to be better", "FocalLoss is better"))


def test_a_terminal_shows_what_is_running_and_the_best_so_far(cli, csv, monkeypatch):
    monkeypatch.setattr("lossworks.cli.err", Console(stderr=True, force_terminal=True, width=120))
    result = cli("compare", csv, "--target", "churn", *FAST)
    assert result.code == 0
    for shown in ("FocalLoss", "best so far", "/10"):
        assert shown in result.err
    assert "best so far" not in result.out


def test_options_reach_the_comparison(cli, csv):
    result = cli(
        *(
            "compare",
            csv,
            "--target",
            "churn",
            "--metric",
            "log_loss",
            "--group",
            "team",
            "--drop",
            "b",
            "--as",
            "a=category",
        ),
        *("--rope", "0.5", "--seed", "3", "--budget", "1e9", "--device", "cpu", "--out", "here", "--json", *FAST),
    )
    document = json.loads(result.out)
    assert document["metric"] == "log_loss"
    assert document["run"] == "here"
    assert "worst_group_log_loss" in document["ranking"][0]
    described = json.loads(Path("here/model.json").read_text())
    assert [column["name"] for column in described["encoder"]["columns"]] == ["a"]
    assert described["columns"] == {"a": "category"}


def test_a_factory_in_a_file_is_the_model(cli, csv):
    Path("mine.py").write_text(
        "import torch\ndef build(shape, outputs):\n    return torch.nn.Linear(shape[0], outputs)\n"
    )
    model = ["--objectives", "FocalLoss", "--folds", "2", "--repeats", "1", "--model", "mine.py:build"]
    assert cli("compare", csv, "--target", "churn", "--out", "run", "--quiet", *model).code == 0
    assert "factory" in cli("predict", "run", csv).err
    predicted = cli("predict", "run", csv, "--model", "mine.py:build")
    assert len(predicted.out.splitlines()) == ROWS + 1


def test_a_targets_name_never_leads_out_of_the_runs_folder(cli):
    data = columns()
    pl.DataFrame({"../../up": data.pop("churn")} | data).write_csv("odd.csv")
    assert cli("compare", "odd.csv", "--target", "../../up", "--quiet", *FAST).code == 0
    assert {path.name for path in Path().iterdir()} == {"odd.csv", "runs"}
    assert [path.parent for path in Path("runs").rglob("model.json")] == [Path("runs/up-1")]


def test_a_command_that_is_printed_is_one_that_a_shell_takes(capsys):
    words = ["predict", "my 'runs'/[b] $1", "new.csv"]
    tool._command(tool.out, "predict", *words)
    assert shlex.split(capsys.readouterr().out) == ["predict", "lossworks", *words]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_screen_of_another_encoding_shows_what_it_can(cli, csv, monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", screen := io.TextIOWrapper(io.BytesIO(), encoding))
    assert cli("compare", csv, "--target", "churn", *FAST).code == 0
    assert {"ascii": b"\\xb1", "latin-1": b"\xb1"}[encoding] in screen.buffer.getvalue()


def test_a_screen_without_width_shows_all(cli, monkeypatch):
    monkeypatch.setattr("lossworks.cli.out", Console(width=0))
    assert "TemperatureScaling" in cli("list").out


def test_a_ranking_wider_than_the_screen_is_not_cut_off(cli, csv):
    result = cli("compare", csv, "--target", "churn", "--group", "team", "--attack", "linf:0.1", "--certify", *FAST)
    assert result.code == 0
    assert re.search("^CrossEntropyLoss .* reference$", result.out, re.MULTILINE)


# resume


def test_a_stopped_run_is_resumed_by_its_folder_alone(cli, csv):
    arguments = ["compare", csv, "--target", "churn", "--metric", "log_loss", "--group", "team", "--as", "a=category"]
    arguments += ["--rope", "0.5", "--seed", "3", *FAST]
    assert cli(*arguments, "--out", "whole", "--quiet").code == 0
    stopped = cli(*arguments, "--out", "run", "--budget", "1e-6").out
    assert "Partial: stopped after its budget" in stopped
    assert "resume   lossworks compare --resume run" in stopped
    resumed = cli("compare", "--resume", "run")
    assert resumed.code == 0
    assert "predict  lossworks predict run new.csv" in resumed.out
    for name in ("results.parquet", "model.safetensors", "model.json"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
    again = cli("compare", "--resume", "run")
    assert again.code == 2
    assert one_line(again).endswith("this run is finished, there is nothing to resume; its report is run/report.html\n")
    assert {path.name for path in Path().iterdir()} == {csv, "run", "whole"}


def test_a_resumed_run_takes_its_options_from_its_folder(cli, csv):
    assert cli("compare", csv, "--target", "churn", "--out", "run", "--budget", "1e-6", *FAST).code == 0
    for option in (["--folds", "2"], ["--target", "churn"], ["--out", "run"], ["--drop", "a"], ["--device", "cpu"]):
        refused = cli("compare", "--resume", "run", *option)
        assert refused.code == 2
        assert f"takes the run's options from its folder: leave {option[0]} out" in one_line(refused)
    assert json.loads(cli("compare", csv, "--resume", "run", "--json", "--budget", "1e9").out)["run"] == "run"


def test_a_model_of_ones_own_is_named_again_to_resume(cli, csv):
    Path("mine.py").write_text(
        "import torch\ndef build(shape, outputs):\n    return torch.nn.Linear(shape[0], outputs)\n"
    )
    model = ["--objectives", "FocalLoss", "--folds", "2", "--repeats", "1", "--model", "mine.py:build"]
    assert cli("compare", csv, "--target", "churn", "--out", "run", "--budget", "1e-6", "--quiet", *model).code == 0
    assert "name it again, --model FILE.py:build" in one_line(cli("compare", "--resume", "run"))
    assert cli("compare", "--resume", "run", "--model", "mine.py:build", "--quiet").code == 0


# predict


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("arguments", [["predict", "{0}/run", "{0}/customers.csv"], ["list"], ["--help"]])
def test_an_output_that_is_full_or_closed_is_one_line(cli, finished, monkeypatch, arguments):
    arguments = [argument.format(finished) for argument in arguments]
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = cli(*arguments)
    assert (result.code, one_line(result)) == (1, "error: the standard output: No space left on device\n")
    monkeypatch.setattr(sys, "stdout", None)
    result = cli(*arguments)
    assert (result.code, one_line(result)) == (1, "error: the standard output: it is closed\n")


@pytest.mark.parametrize("arguments", [["predict", "{0}/run", "{0}/customers.csv"], ["list"]])
def test_a_reader_who_has_enough_is_no_error(cli, finished, monkeypatch, arguments):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("lossworks.cli.out", Console())  # which goes quiet
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        result = cli(*(argument.format(finished) for argument in arguments))
    assert result.err == ""


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
    assert says in one_line(result)
    assert [path.name for path in Path().iterdir()] == ["short.csv"]


# The catalog


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


def test_list_names_every_part_in_full(cli):
    from lossworks.catalog import parts

    result = cli("list")
    assert result.code == 0
    assert set(parts()) <= set(re.findall(r"\w+", result.out))


def test_show_tells_of_one_part_and_its_papers(cli):
    result = cli("show", "LDRLoss")
    assert result.code == 0
    for told in ("lossworks.losses.LDRLoss", "Args:", "zhu2023ldr", "noisy labels"):
        assert told in result.out
    assert cli("show", "ldrloss").out == result.out


def test_claims_are_listed_with_the_way_to_their_experiments(cli):
    result = cli("claims")
    assert result.code == 0
    assert re.search(r"^zhu2023ldr: shown$", result.out, re.MULTILINE)
    assert re.search(r"^shi2021fast: not shown$|^zhang2024fmr: shown$", result.out, re.MULTILINE)
    assert "python -m claims run" in result.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "LDRLos"], "did you mean 'LDRLoss'"),
        (["claims", "run", "zhu2023ldr"], "unexpected"),
        (["nonsense"], "No such command 'nonsense'"),
        (["compare", "--nonsense"], "No such option: --nonsense"),
        (["compare", "--folds", "two"], "--folds"),
    ],
)
def test_bad_commands_are_one_line(cli, arguments, says):
    result = cli(*arguments)
    assert result.code == 2
    assert says in one_line(result)


def test_help_is_no_error(cli):
    result = cli("--help")
    assert result.code == 0
    assert "compare" in result.out


# Bad input


def one_line(result: Result) -> str:
    """What is on stderr, which must be a single line, with nothing on stdout."""
    assert "Traceback" not in result.err
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert result.err.startswith("error: ")
    return result.err


def table(**changed: list) -> bytes:
    data = columns() | changed
    return pl.DataFrame({name: values for name, values in data.items() if values is not None}).write_csv().encode()


def rows(*lines: str) -> bytes:
    return "\n".join(lines).encode()


def arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {"X": np.random.default_rng(0).normal(size=(ROWS, 3)), "y": np.arange(ROWS) % 2} | changed


def spoiled(value: float) -> np.ndarray:
    x = arrays()["X"]
    x[7, 2] = value
    return x


CHURN = ["--target", "churn"]
WRONG = {
    "missing file": (None, CHURN, "data.csv does not exist"),
    "missing folder": (None, ["!nowhere/x.csv", *CHURN], "there is no folder 'nowhere'"),
    "empty file": (b"", CHURN, "data.csv is empty"),
    "blank lines": (b"\n\n\n", CHURN, "data.csv is empty"),
    "header alone": (b"a,churn\n", CHURN, "has a header and no rows"),
    "not a table": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", CHURN, "is not a table"),
    "not text": (b"a,churn\n\xff\xfe,1\n", CHURN, "line 2 is not UTF-8"),
    "another suffix": (None, ["!photo.png", *CHURN], "photo.png"),
    "ragged rows": (rows("a,churn", "1,x", "2,y,z", "3,x"), CHURN, "line 3 has 3 values where the header has 2"),
    "short row": (rows("a,b,churn", "1,2,x", "2,y", "3,4,x"), CHURN, "line 3 has 2 values where the header has 3"),
    "no target said": (table(), [], "say which column to predict"),
    "target missing": (table(), ["--target", "chrun"], "has no column 'chrun' (target); did you mean 'churn'?"),
    "target of one value": (table(churn=["yes"] * ROWS), CHURN, "has one value, 'yes'"),
    "target without values": (table(churn=[None] * ROWS), CHURN, "no values"),
    "rare class": (table(churn=["x"] * (ROWS - 1) + ["y"]), CHURN, "class 'y' has 1 row, fewer than the 2 folds"),
    "column without values": (table(b=[None] * ROWS), CHURN, "column 'b' has no values: use --drop b"),
    "constant columns": (table(a=[1] * ROWS, b=[2] * ROWS, team=None), CHURN, "none of the columns 'a', 'b' varies"),
    "target alone": (table(a=None, b=None, team=None), CHURN, "nothing to learn from"),
    "infinite number": (table(a=[1.0, float("inf")] + [0.0] * (ROWS - 2)), CHURN, "line 3 is infinite"),
    "dates": (table(b=["2024-01-02", "2024-03-04"] * (ROWS // 2)), CHURN, "holds dates (line 2 has '2024-01-02')"),
    "mixed types": (table(b=["1.5"] * (ROWS - 1) + ["oops"]), CHURN, "mixes numbers with text: line 61 has 'oops'"),
    "duplicate names": (rows("a,a,churn", "1,2,x", "3,4,y"), CHURN, "'a'"),
    "10,000 texts": (
        pl.DataFrame({"t": [f"t{i}" for i in range(10_000)], "churn": [0, 1] * 5000}).write_csv().encode(),
        CHURN,
        "10,000 different texts such as 't0' (line 2)",
    ),
    "NaN in arrays": (arrays(X=spoiled(np.nan)), [], "nan in row 7, column 2"),
    "Inf in arrays": (arrays(X=spoiled(np.inf)), [], "inf in row 7, column 2"),
    "arrays of other lengths": (arrays(y=np.arange(5)), [], "must have shape (60,)"),
    "array missing": ({"x": np.ones((4, 2)), "y": np.arange(4)}, [], "has no array 'X'; did you mean 'x'?"),
    "NaN in an array's target": (arrays(y=np.full(ROWS, np.nan)), [], "NaN"),
    "wrong metric": (table(), [*CHURN, "--metric", "balanced_acuracy"], "did you mean 'balanced_accuracy'"),
    "metric of another task": (table(), [*CHURN, "--metric", "rmse"], "the target is binary"),
    "wrong objective": (table(), [*CHURN, "--objectives", "FocalLos"], "did you mean 'FocalLoss'"),
    "objective of another task": (table(), [*CHURN, "--objectives", "HuberLoss"], "is for real values"),
    "wrong model": (table(), [*CHURN, "--model", "mpl"], "did you mean 'mlp'"),
    "model for images": (table(), [*CHURN, "--model", "cnn"], "needs images"),
    "model file missing": (table(), [*CHURN, "--model", "mine.py:build"], "no such file mine.py"),
    "group missing": (table(), [*CHURN, "--group", "taem"], "has no column 'taem' (group); did you mean 'team'?"),
    "drop missing": (table(), [*CHURN, "--drop", "bb"], "has no column 'bb' (drop)"),
    "wrong kind": (table(), [*CHURN, "--as", "a=catgory"], "did you mean 'category'"),
    "kind without a name": (table(), [*CHURN, "--as", "category"], "--as must be NAME=category"),
    "wrong task": (table(), [*CHURN, "--task", "rael"], "did you mean 'real'"),
    "no GPU": (table(), [*CHURN, "--device", "cuda"], "torch finds no GPU here; use --device cpu"),
    "one fold": (table(), [*CHURN, "--folds", "1"], "folds must be an int >= 2"),
    "no repeats": (table(), [*CHURN, "--repeats", "0"], "repeats must be an int >= 1"),
    "no time": (table(), [*CHURN, "--budget", "0"], "budget must be a number of seconds > 0"),
    "negative seed": (table(), [*CHURN, "--seed", "-1"], "seed must be an int >= 0"),
    "negative rope": (table(), [*CHURN, "--rope", "-1"], "rope must be a number >= 0"),
    "output in a file": (table(), [*CHURN, "--out", "file/run"], "file/run: cannot be written"),
    "output is a file": (table(), [*CHURN, "--out", "file"], "file: cannot be written"),
    "output is empty": (table(), [*CHURN, "--out", ""], "'--out': it is empty"),
    "run is empty": (table(), ["--resume", ""], "'--resume': it is empty"),
    "objectives are empty": (table(), [*CHURN, "--objectives", ""], "objectives: no part is called ''"),
    "model file's name too long": (table(), [*CHURN, "--model", f"{'x' * 300}.py:f"], "(File name too long)"),
    "emoji": (table(), ["--target", ":dog:"], "no column ':dog:' (target)"),
    "emoji in a file's name": (None, ["!:dog:.csv", *CHURN], ":dog:.csv does not exist"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_one_line_exit_code_2_and_nothing_left_behind(cli, wrong):
    content, arguments, says = WRONG[wrong]
    Path("file").write_text("a file")
    name = "data.csv"
    if isinstance(content, dict):
        np.savez("data.npz", **content)
        name = "data.npz"
    elif content is not None:
        Path(name).write_bytes(content)
    if arguments and arguments[0].startswith("!"):
        name, *arguments = [arguments[0][1:], *arguments[1:]]
    result = cli("compare", name, *FAST, *arguments)
    assert result.code == 2
    assert says in one_line(result)
    assert {path.name for path in Path().iterdir()} <= {"file", "data.csv", "data.npz"}
    assert Path("file").read_text() == "a file"


def test_a_run_folder_of_another_version_is_refused(cli, csv, finished):
    Path("run").mkdir()
    for name in ("model.json", "model.safetensors"):
        Path("run", name).write_bytes((finished / "run" / name).read_bytes())
    described = json.loads(Path("run/model.json").read_text())
    Path("run/model.json").write_text(json.dumps(described | {"version": 2}))
    result = cli("predict", "run", csv)
    assert result.code == 2
    assert "run/model.json: is of version 2, this lossworks reads 1; train it again" in one_line(result)


def test_a_finished_run_is_not_written_over(cli, csv, finished):
    result = cli("compare", csv, "--target", "churn", "--out", finished / "run", *FAST)
    assert result.code == 2
    assert "choose another --out" in one_line(result)


def test_brackets_in_names_are_shown_as_they_are(cli):
    data = columns()
    pl.DataFrame({"[bold]a[/bold]": data["a"], "[/x]": data["churn"]}).write_csv("odd.csv")
    assert cli("compare", "odd.csv", "--target", "[/x]", *FAST).code == 0
    assert "[/y]" in one_line(cli("compare", "odd.csv", "--target", "[/y]", *FAST))


def test_what_is_running_is_named_as_it_is(monkeypatch, capsys):
    monkeypatch.setattr("lossworks.cli.err", Console(stderr=True, force_terminal=True, width=120))
    with tool._watching(False) as watch:
        watch(Progress(running=":dog: [b]x", done=1, total=2, share=0.5, seconds_left=None, best=":cat: [b]y"))
    shown = capsys.readouterr().err
    assert ":dog: [b]x" in shown
    assert ":cat: [b]y" in shown


def test_text_is_printed_as_it_is(capsys):
    for text in ("[b]x[/b]", ":dog:", "ends in\\", "ends in\\\\"):
        tool.out.print(tool._plain(text), tool._plain("more"))
        assert capsys.readouterr().out == f"{text} more\n"
    tool.out.print(":dog:")
    assert capsys.readouterr().out == ":dog:\n"


def test_the_free_folder_of_any_target_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tool._free_folder("y" * 300)
    folder.mkdir(parents=True)
    assert tool._free_folder("y" * 300) == folder.with_name(f"{folder.name[:-1]}2")


def test_runs_that_cannot_be_read_are_one_line(cli, csv, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    assert "runs: cannot be read (Permission denied)" in one_line(cli("compare", csv, "--target", "churn"))


def test_a_model_file_that_ends_the_program_does_not(cli, csv):
    Path("ends.py").write_text("raise SystemExit(7)\n")
    result = cli("compare", csv, "--target", "churn", "--model", "ends.py:build")
    assert result.code == 2
    assert "ends.py fails when imported (SystemExit: 7)" in one_line(result)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_is_no_traceback(cli, csv, monkeypatch):
    monkeypatch.setattr("lossworks.comparison.compare", interrupted)
    result = cli("compare", csv, "--target", "churn")
    assert (result.code, result.err) == (130, "stopped\n")


def test_ctrl_c_says_how_to_go_on_where_there_is_something_to_go_on_with(cli, csv, finished, monkeypatch):
    arguments = ["compare", csv, "--target", "churn", "--quiet", *FAST]
    assert cli(*arguments, "--out", "my run", "--budget", "1e-6").code == 0
    monkeypatch.setattr("lossworks.comparison.compare", interrupted)
    result = cli("compare", "--resume", "my run")
    assert (result.code, result.err) == (130, "resume   lossworks compare --resume 'my run'\nstopped\n")
    assert cli(*arguments, "--out", finished / "run").err == "stopped\n"


def test_ctrl_c_is_heard_while_the_library_is_imported():
    code = """
import os, signal, sys

class Impatient:
    def find_spec(self, name, *_):
        if name == "lossworks":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Impatient())
import lossworks_command
lossworks_command.main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "stopped\n")


def test_another_ctrl_c_is_no_traceback(monkeypatch, capfd):
    def ended(code):
        raise SystemExit(code)

    monkeypatch.setattr("lossworks.cli.main", interrupted)
    monkeypatch.setattr(os, "_exit", ended)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit, match="130"):
            lossworks_command.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "stopped\n"


def test_the_installed_command_ends_with_one_line_and_exit_code_2(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "lossworks.cli", "compare", "nowhere.csv", "--target", "y"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: nowhere.csv does not exist: check its name\n"
    assert list(tmp_path.iterdir()) == []
