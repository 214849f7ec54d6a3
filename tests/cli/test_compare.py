import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import FAST, MODEL_FILE, ROWS, columns

from lossworks.cli.answer import _broken
from lossworks.cli.compare import free_folder


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


def test_a_targets_name_never_leads_out_of_the_runs_folder(cli):
    data = columns()
    pl.DataFrame({"../../up": data.pop("churn")} | data).write_csv("odd.csv")
    assert cli("compare", "odd.csv", "--target", "../../up", "--quiet", *FAST).code == 0
    assert {path.name for path in Path().iterdir()} == {"odd.csv", "runs"}
    assert [path.parent for path in Path("runs").rglob("model.json")] == [Path("runs/up-1")]


def test_the_widest_ranking_fits_the_screen_and_is_not_cut_off(cli, csv):
    result = cli("compare", csv, "--target", "churn", "--group", "team", "--attack", "linf:0.1", "--certify", *FAST)
    assert result.code == 0
    assert re.search("^CrossEntropyLoss .* reference$", result.out, re.MULTILINE)
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "room", "lines"),
    [
        ("CrossEntropyLoss+SmallLossWeights", 29, ["CrossEntropyLoss+", "SmallLossWeights"]),
        ("AsymmetricGeneralizedCrossEntropyLoss", 29, ["AsymmetricGeneralizedCross", "EntropyLoss"]),
        ("GeneralizedCrossEntropyLoss+KLDRO", 18, ["GeneralizedCross", "EntropyLoss+KLDRO"]),
        ("gradient boosting", 12, ["gradient ", "boosting"]),
        ("FocalLoss+KLDRO", 18, ["FocalLoss+KLDRO"]),
    ],
)
def test_a_long_name_is_broken_between_its_parts_and_their_words(name, room, lines):
    assert _broken(name, room).split("\n") == lines


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
    assert again.one_line().endswith(
        "this run is finished, there is nothing to resume; its report is run/report.html\n"
    )
    assert {path.name for path in Path().iterdir()} == {csv, "run", "whole"}


def test_a_resumed_run_takes_its_options_from_its_folder(cli, csv):
    assert cli("compare", csv, "--target", "churn", "--out", "run", "--budget", "1e-6", *FAST).code == 0
    for option in (["--folds", "2"], ["--target", "churn"], ["--out", "run"], ["--drop", "a"], ["--device", "cpu"]):
        refused = cli("compare", "--resume", "run", *option)
        assert refused.code == 2
        assert f"takes the run's options from its folder: leave {option[0]} out" in refused.one_line()
    assert json.loads(cli("compare", csv, "--resume", "run", "--json", "--budget", "1e9").out)["run"] == "run"


def test_a_model_of_ones_own_is_named_again_to_resume(cli, csv):
    Path("mine.py").write_text(MODEL_FILE)
    model = ["--objectives", "FocalLoss", "--folds", "2", "--repeats", "1", "--model", "mine.py:build"]
    assert cli("compare", csv, "--target", "churn", "--out", "run", "--budget", "1e-6", "--quiet", *model).code == 0
    assert "name it again, --model FILE.py:build" in cli("compare", "--resume", "run").one_line()
    assert cli("compare", "--resume", "run", "--model", "mine.py:build", "--quiet").code == 0


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
    "output is empty": (table(), [*CHURN, "--out", ""], "'--out': the path is empty"),
    "run is empty": (table(), ["--resume", ""], "'--resume': the path is empty"),
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
    assert says in result.one_line()
    assert {path.name for path in Path().iterdir()} <= {"file", "data.csv", "data.npz"}
    assert Path("file").read_text() == "a file"


def test_a_finished_run_is_not_written_over(cli, csv, finished):
    result = cli("compare", csv, "--target", "churn", "--out", finished / "run", *FAST)
    assert result.code == 2
    assert "choose another --out" in result.one_line()


def test_brackets_in_names_are_shown_as_they_are(cli):
    data = columns()
    pl.DataFrame({"[bold]a[/bold]": data["a"], "[/x]": data["churn"]}).write_csv("odd.csv")
    assert cli("compare", "odd.csv", "--target", "[/x]", *FAST).code == 0
    assert "[/y]" in cli("compare", "odd.csv", "--target", "[/y]", *FAST).one_line()


def test_the_free_folder_of_any_target_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = free_folder("y" * 300)
    folder.mkdir(parents=True)
    assert free_folder("y" * 300) == folder.with_name(f"{folder.name[:-1]}2")


def test_runs_that_cannot_be_read_are_one_line(cli, csv, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    assert "runs: cannot be read (Permission denied)" in cli("compare", csv, "--target", "churn").one_line()


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_go_on_where_there_is_something_to_go_on_with(cli, csv, finished, monkeypatch):
    arguments = ["compare", csv, "--target", "churn", "--quiet", *FAST]
    assert cli(*arguments, "--out", "my run", "--budget", "1e-6").code == 0
    monkeypatch.setattr("lossworks.comparison.compare", interrupted)
    result = cli("compare", "--resume", "my run")
    assert (result.code, result.err) == (130, "resume   lossworks compare --resume 'my run'\nstopped\n")
    assert cli(*arguments, "--out", finished / "run").err == "stopped\n"
