"""Runs that are killed and go on: the folder is all it takes, and the results are those of a run that never stopped."""

import json
import os
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import lossworks as lw
from lossworks.comparison import InputError, Training
from lossworks.comparison.options import OPTIONS as KINDS_OF_OPTIONS
from lossworks.losses import CrossEntropyLoss, FocalLoss
from lossworks.runs.folder import opened
from lossworks.runs.journal import Journal
from lossworks.weights import SampleWeights

ROWS = 90
QUICK = Training(batch_size=16, max_steps=40, eval_every=10)
SAME = ("results.parquet", "model.safetensors", "model.json", "recipe.py")
"""What a run that was stopped and one that was not must have alike, byte for byte; a report names the seconds."""


def table() -> pl.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 2))
    label = np.where(x[:, 0] + 0.4 * random.normal(size=ROWS) > 0.2, "yes", "no")
    day = [f"2024-{1 + i % 12:02d}-01" for i in range(ROWS)]
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "day": day, "team": ["red", "blue", "red"] * 30, "label": label})


OPTIONS = {
    "objectives": ["FocalLoss", "LDRLoss"],
    "metric": "log_loss",
    "model": "mlp",
    "folds": 2,
    "repeats": 1,
    "group": "team",
    "seed": 3,
    "task": "binary",
    "drop": ("b",),
    "columns": {"day": "date"},
    "rope": 0.02,
    "training": QUICK,
    "attack": "linf:0.1",
    "certify": True,
}
"""None of them is what it is by default."""


@pytest.fixture(scope="module")
def csv(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "people.csv"
    table().write_csv(path)
    return path


@pytest.fixture(scope="module")
def whole(csv, tmp_path_factory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    lw.compare(csv, "label", out=folder, **OPTIONS)
    return folder


def alike(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in SAME)


def begun(folder: Path, data, target: str | None = "label", **options) -> Path:
    """The folder of a run that was stopped when its reference was trained."""
    given = {"folds": 2, "repeats": 1, "training": QUICK, "model": "linear", "objectives": ["FocalLoss"]} | options
    if data is not None:
        given["columns"] = {"day": "date"}
    lw.compare(data, target, out=folder, budget=1e-6, **given)
    return folder


def change(folder: Path, **fields: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_options(folder: Path, **options: object) -> None:
    change(folder, options=json.loads((folder / "run.json").read_text())["options"] | options)


def said(folder: Path, *given, **options) -> str:
    """What is said when this run is to go on, after which it is as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError) as caught:
        lw.compare(*given, resume=folder, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Killed

KILLED = """
import json, os, signal, sys
from pathlib import Path
import lossworks as lw
from lossworks.comparison import Training

folder, csv, options, moments = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
options["training"] = Training(**options["training"])


def attempt(running, files):
    # Dies when that objective has been told of twice, or when so many files are in place, or not at all.
    ticks, moved, move = [], [], Path.replace

    def die():
        print(ticks[:1], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(progress):
        ticks.append(progress.running)
        if ticks.count(running) == 2:
            die()

    def replace(self, target):
        if self.name == ".run.json.unfinished":
            if files == 0:
                die()
        else:
            moved.append(target)
            if len(moved) == files:
                die()
        return move(self, target)

    Path.replace = replace
    if (folder / "run.json").exists():
        lw.compare(resume=folder, watch=watch)
    else:
        lw.compare(csv, "label", out=folder, watch=watch, **options)
    print(ticks[:1], flush=True)


for running, files in moments:
    child = os.fork()
    if not child:
        attempt(running, files)
        os._exit(0)
    os.waitpid(child, 0)
    print(sorted(path.name for path in folder.glob("[!.]*")), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_run_that_is_killed_wherever_it_is_goes_on_to_the_same_bytes(csv, whole, tmp_path):
    options = OPTIONS | {"training": vars(QUICK)}
    moments = [
        ("", 0),  # when run.json is about to appear
        ("CrossEntropyLoss", None),
        ("gradient boosting", None),
        ("FocalLoss", None),
        ("LDRLoss", None),
        ("", 1),  # when all is trained, and the first of the results is about to be moved into place
        ("", 4),
        ("", None),
    ]
    arguments = [tmp_path / "run", *map(json.dumps, (str(csv), options, moments))]
    ran = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = list(map(json.loads, ran.stdout.replace("'", '"').splitlines()))
    first, files = lines[::2], lines[1::2]
    reference, outside = ["CrossEntropyLoss"], ["gradient boosting"]
    assert first == [[], reference, reference, outside, ["FocalLoss"], ["LDRLoss"], [], []], "it goes on where it was"
    journal = ["journal.sqlite", "journal.sqlite-wal"]
    assert files[:6] == [journal, *[[*journal, "run.json"]] * 5]
    assert files[6] == [*journal, "model.json", "model.safetensors", "recipe.py", "run.json"]
    assert alike(tmp_path / "run", whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}
    assert "this run is finished, there is nothing to resume" in said(tmp_path / "run")


def test_results_depend_on_no_process(csv, whole, tmp_path):
    lw.compare(csv, "label", out=tmp_path / "run", **OPTIONS)
    assert alike(tmp_path / "run", whole)


def test_what_is_committed_is_not_trained_again(csv, whole, tmp_path):
    folder = tmp_path / "run"
    assert lw.compare(csv, "label", out=folder, budget=1e-6, **OPTIONS).partial
    seen = []
    result = lw.compare(resume=folder, watch=seen.append)
    assert {progress.running for progress in seen} == {"FocalLoss", "LDRLoss", "gradient boosting"}
    assert result.partial is None
    assert alike(folder, whole)


# The folder is all it takes


def test_run_json_is_plain_and_knows_the_data_and_every_option(csv, whole):
    run = json.loads((whole / "run.json").read_text())
    options = OPTIONS | {"target": "label", "device": "cpu", "training": vars(QUICK), "drop": ["b"]}
    assert run["options"] == options
    assert run["data"]["path"] == str(csv)
    assert run["finished"] is True
    assert run["version"] == 1
    assert run["software"]["torch"]


def test_arrays_and_frames_are_given_again(tmp_path):
    folder = begun(tmp_path / "run", table())
    assert "was given from Python, as no file: give it again" in said(folder)
    assert "give it again" in said(folder, "people.csv")
    assert "another plan" in said(folder, table().with_columns(pl.col("a") + 1))
    assert lw.compare(table(), resume=folder).partial is None


def test_the_embedded_data_needs_nothing(tmp_path):
    folder = begun(tmp_path / "run", None, None, training=Training(64, 20, 10))
    assert "on the embedded data: leave the data out" in said(folder, table())
    assert lw.compare(resume=folder).partial is None


def factory(shape, outputs):
    return nn.Linear(shape[0], outputs)


def wider(shape, outputs):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, outputs))


def test_a_factory_is_named_again_and_is_the_same(csv, tmp_path):
    folder = begun(tmp_path / "run", csv, model=factory)
    assert "code is never run from a run folder: name it again, --model FILE.py:factory" in said(folder)
    assert "the journal is of another plan" in said(folder, model=wider)
    assert lw.compare(resume=folder, model=factory).partial is None


def test_objectives_of_ones_own_are_given_again_with_the_same_values(csv, tmp_path):
    def given(last: float) -> dict:
        weights = SampleWeights(torch.linspace(0.5, last, ROWS))
        return {"mine": lw.Objective(CrossEntropyLoss(), weights=weights), "other": FocalLoss()}

    folder = begun(tmp_path / "run", csv, objectives=given(2.0))
    assert "objectives are your own: give 'mine', 'other' again" in said(folder)
    assert "give 'mine', 'other' again" in said(folder, objectives={"mine": FocalLoss()})
    assert "the journal is of another plan" in said(folder, objectives=given(2.5))
    assert lw.compare(resume=folder, objectives=given(2.0)).partial is None


def test_data_that_has_moved_may_be_named_and_data_that_has_changed_is_refused(csv, tmp_path):
    moved, changed = tmp_path / "moved.csv", tmp_path / "people.csv"
    changed.write_bytes(csv.read_bytes())
    folder = begun(tmp_path / "run", changed)
    changed.rename(moved)
    assert "people.csv is no file, but the run" in said(folder)
    table().with_columns(pl.col("a") + 1).write_csv(changed)
    assert "people.csv has changed since the run" in said(folder)
    assert "the run's data is the file" in said(folder, table())
    assert lw.compare(moved, resume=folder).partial is None


# What does not fit is said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: change(f, version=2), "run.json: is of version 2, this lossworks reads 1"),
        (lambda f: change(f, extra=1), "has the unknown 'extra'"),
        (lambda f: change(f, options={}), "options: lacks 'attack'"),
        (lambda f: change_options(f, pickled="x"), "options: has the unknown 'pickled'"),
        (lambda f: change_options(f, folds="2"), "options: folds must be of type int, got '2'"),
        (lambda f: change_options(f, folds=True), "options: folds must be of type int, got True"),
        (lambda f: change_options(f, folds=3), "the journal is of another plan"),
        (lambda f: change_options(f, training={"evil": 1}), "training: "),
        (lambda f: change_options(f, training={"lr": -1.0}), "training: lr must be"),
        (lambda f: change_options(f, model="os.system"), "model must be one of"),
        (lambda f: change(f, data={"kind": "pickle"}), "data: {'kind': 'pickle'} is not known"),
        (lambda f: change(f, data={"kind": ["file"]}), "is not known"),
        (lambda f: change(f, software={"lossworks": "0.0.1"}), "begun with lossworks 0.0.1, here is 0.1.0"),
        (lambda f: (f / "run.json").write_text("{"), "run.json: cannot be read"),
        (lambda f: (f / "run.json").write_bytes(b"\xff"), "run.json: cannot be read"),
        (lambda f: (f / "run.json").write_text("[]"), "is of version None"),
        (lambda f: (f / "run.json").unlink(), "no run was begun here: there is nothing to resume"),
        (lambda f: (f / "journal.sqlite").unlink(), "the journal is damaged (it is empty or gone)"),
        (lambda f: (f / "journal.sqlite").write_bytes(b"garbage" * 999), "the journal is damaged"),
    ],
)
def test_a_folder_that_is_not_what_it_was_is_said_in_one_line(damage, says, csv, tmp_path):
    folder = begun(tmp_path / "run", csv)
    damage(folder)
    assert says in said(folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("objectives", [1]),
        ("objectives", {"own": 5}),
        ("objectives", {"own": [1]}),
        ("objectives", {"own": ["mine"], "more": 1}),
        ("objectives", {}),
        ("drop", [1]),
        ("drop", [["a"]]),
        ("columns", {"a": 1}),
        ("columns", {"a": None}),
        ("model", {"a": "x"}),
        ("model", {"own": ["x"]}),
    ],
)
def test_options_that_hold_what_no_run_writes_are_refused(option, value, whole, tmp_path):
    change_options(unfinished(whole, tmp_path), **{option: value})
    assert f"run.json: options: {option} must be as a run writes it, of texts alone, got" in said(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"version": 1, "version": 1}', "a name stands twice"),
        ('{"version": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_run_json_that_is_no_strict_json_is_refused(content, says, tmp_path):
    (tmp_path / "run.json").write_text(content)
    assert says in said(tmp_path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x.csv", "x" * 5000, "a\0b", "\ud800", "/dev/null", "/"])
def test_data_at_a_path_that_no_file_has_is_refused(path, whole, tmp_path):
    change(unfinished(whole, tmp_path), data={"kind": "file", "path": path, "sha256": ""})
    assert "is no file, but the run in" in said(tmp_path)


def unfinished(whole: Path, folder: Path) -> Path:
    """The folder with the run.json of that run as it was before the run was finished."""
    (folder / "run.json").write_bytes((whole / "run.json").read_bytes())
    change(folder, finished=False)
    return folder


def test_options_that_contradict_the_run_are_refused_and_those_that_repeat_it_are_not(csv, tmp_path):
    folder = begun(tmp_path / "run", csv)
    assert f"folds: the run in {folder} has 2, got 3" in said(folder, folds=3)
    assert "objectives: the run in" in said(folder, objectives=["LDRLoss"])
    assert "leave out=" in said(folder, out=folder)
    assert lw.compare(csv, "label", resume=folder, folds=2, objectives=["FocalLoss"]).partial is None


def test_nothing_is_resumed_where_nothing_is(tmp_path):
    with pytest.raises(InputError, match="there is no such run folder: there is nothing to resume"):
        lw.compare(resume=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_said_to_be_so(whole):
    assert said(whole) == (
        f"{whole}: this run is finished, there is nothing to resume; its report is {whole / 'report.html'}"
    )


def test_a_run_of_another_version_is_not_continued_by_naming_its_folder_either(csv, tmp_path):
    folder = begun(tmp_path / "run", csv)
    change(folder, software={"lossworks": "0.0.1"})
    with pytest.raises(InputError, match="begun with lossworks"):
        begun(folder, csv)


def test_a_run_that_is_at_work_is_left_alone(csv, tmp_path):
    inside = []

    def second(_):
        if not inside:
            inside.append(said_by_a_second())

    def said_by_a_second() -> str:
        with pytest.raises(InputError) as caught:
            begun(tmp_path / "run", csv)
        return str(caught.value)

    begun(tmp_path / "run", csv, watch=second)
    assert "another process is at work on this run" in inside[0]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_full_disk_ends_the_run_with_what_is_committed_and_it_goes_on(csv, whole, tmp_path, monkeypatch):
    commit = Journal.add

    def full(self, number, replicas):
        if len(self.done()) == 2:
            pages = self._store.execute("PRAGMA page_count").fetchone()[0]
            self._store.execute(f"PRAGMA max_page_count = {pages}")
            replicas = replicas * 20
        commit(self, number, replicas)

    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(InputError, match=r"database or disk is full.*go on with --resume"):
        lw.compare(csv, "label", out=tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    seen = []
    lw.compare(resume=tmp_path / "run", watch=seen.append)
    assert "CrossEntropyLoss" not in {progress.running for progress in seen}
    assert alike(tmp_path / "run", whole)


def test_a_run_that_ends_before_its_first_commit_removes_no_file_of_the_users(tmp_path):
    mine = tmp_path / "journal.sqlite.bak"
    mine.write_text("mine")
    with suppress(KeyboardInterrupt), opened(tmp_path, "plan", dict, KINDS_OF_OPTIONS):
        assert (tmp_path / "journal.sqlite-wal").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [mine]


def test_the_journal_is_locked_until_all_is_handed_over(csv, tmp_path, monkeypatch):
    found = []

    def save(self, path):
        with pytest.raises(InputError, match="another process"), closing(Journal(Path(path) / "journal.sqlite", "")):
            pass
        found.append(path)

    monkeypatch.setattr("lossworks.comparison.handover.comparison.Comparison.save", save)
    begun(tmp_path / "run", csv)
    assert found
