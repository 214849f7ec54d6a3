import builtins
import errno
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file
from torch import nn

import lossworks as lw
from lossworks.comparison import InputError, Training
from lossworks.comparison.handover.model import spreadsheet_safe
from lossworks.losses import CrossEntropyLoss, GeneralRobustLoss, HingeLoss, LDRLoss
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from lossworks.weights import ClassBalanced, SampleWeights, SmallLossWeights

QUICK = Training(batch_size=16, max_steps=40, eval_every=10)
ROWS = 80
BEGUN = {"journal.sqlite", "run.json"}
FILES = BEGUN | {"model.json", "model.safetensors", "recipe.py", "report.html", "results.parquet"}


def table(rows: int = ROWS) -> pl.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 2))
    score = x[:, 0] + 0.4 * random.normal(size=rows)
    return pl.DataFrame(
        {
            "a": pl.Series(x[:, 0]).set(pl.Series(range(rows)) == 3, None),
            "b": x[:, 1],
            "town": random.choice(["Ulm", "Bonn", "Köln"], rows),
            "day": [f"{1 + i % 28:02d}.{1 + i % 12:02d}.2024" for i in range(rows)],
            "label": np.where(score > 0.2, "=yes", "no"),
            "amount": 100 + 20 * score,
        }
    )


def quick(data, target, objectives=("FocalLoss",), **options):
    given = {"folds": 2, "repeats": 1, "training": QUICK, "model": "linear"} | options
    return lw.compare(data, target, objectives=objectives, **given)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "people.csv"
    table().drop("amount").write_csv(path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, csv):
    run = tmp_path_factory.mktemp("runs") / "run"
    return quick(csv, "label", out=run, columns={"day": "date"}), run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run folder, to be damaged."""
    copy = tmp_path / "run"
    copy.mkdir()
    for file in finished[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What is handed over


def test_the_run_folder_holds_all_of_it_and_no_pickle(finished):
    comparison, folder = finished
    assert contents(folder) == FILES
    for path in folder.iterdir():
        assert not zipfile.is_zipfile(path), "torch.save and np.savez write archives"
        assert b"cpickle" not in path.read_bytes().lower()
    assert_frame_equal(pl.read_parquet(folder / "results.parquet"), comparison.results)
    assert comparison.answer.split(" (")[0] in (folder / "report.html").read_text()


def test_the_readme_names_every_file_of_a_run_folder(finished):
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    told = text[text.index("It writes a run folder") :].partition("Some options add")[0]
    assert set(re.findall(r"`([\w.]+)`", told)) == contents(finished[1])


def test_a_loaded_model_predicts_bit_for_bit_what_the_run_that_trained_it_does(finished, csv):
    comparison, folder = finished
    loaded = lw.load(folder)
    for data in (csv, pl.read_csv(csv), pl.read_csv(csv).to_dict(as_series=False), pl.read_csv(csv).drop("label")):
        np.testing.assert_array_equal(loaded.predict_proba(data), comparison.model().predict_proba(csv))
        np.testing.assert_array_equal(loaded.predict(data), comparison.model().predict(csv))
    assert loaded.objective == comparison.winner


def test_probabilities_are_those_of_the_fitted_temperature(finished, csv):
    model = finished[0].model()
    logits = model.scores(csv).double() / model.temperature
    np.testing.assert_allclose(model.predict_proba(csv), logits.softmax(1), rtol=1e-12)


def test_dates_are_read_at_predict_time_as_they_were_in_training(finished, csv):
    loaded = lw.load(finished[1])
    assert loaded.columns == {"day": "date:%d.%m.%Y"}
    later = pl.read_csv(csv).with_columns(day=pl.lit("01.06.2024"))
    assert not np.array_equal(loaded.predict_proba(later), loaded.predict_proba(csv))
    with pytest.raises(InputError, match="row 0 is no date: '2024-06-01'"):
        loaded.predict(pl.read_csv(csv).with_columns(day=pl.lit("2024-06-01")))


def test_arrays_images_and_real_targets_come_back_bit_for_bit(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 1, 4, 4)), np.arange(60) % 2
    np.savez(tmp_path / "images.npz", X=x, y=y)
    cases = [(tmp_path / "images.npz", None, "cnn"), ((x[:, 0, 0], y), None, "mlp"), (table(), "amount", "mlp")]
    for number, (data, target, model) in enumerate(cases):
        options = {"drop": ("label",), "columns": {"day": "date"}} if target else {}
        comparison = quick(data, target, [], model=model, out=tmp_path / str(number), **options)
        raw = data[0] if isinstance(data, tuple) else data
        expected = comparison.model().predict(raw)
        np.testing.assert_array_equal(lw.load(tmp_path / str(number)).predict(raw), expected)
        assert len(expected) == comparison.shape[0]


def test_pandas_frames_predict_like_polars_frames(finished, csv):
    loaded, frame = lw.load(finished[1]), pl.read_csv(csv)
    np.testing.assert_array_equal(loaded.predict_proba(frame.to_pandas()), loaded.predict_proba(frame))


def test_real_predictions_are_in_the_targets_own_unit():
    comparison = quick(table().select("a", "b", "amount"), "amount", ["HuberLoss"], model="mlp")
    predicted = comparison.model().predict(table())
    assert predicted.dtype == np.float64
    assert 80 < predicted.mean() < 120
    with pytest.raises(InputError, match="real-valued"):
        comparison.model().predict_proba(table())


def flat(shape, outputs):
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 4), torch.nn.Tanh(), torch.nn.Linear(4, outputs))


class Failing(torch.nn.Sequential):
    """The trained layers, which it does not run."""

    def forward(self, x):
        return 1 / 0


def test_a_factorys_model_is_loaded_with_the_factory_and_not_without(tmp_path):
    data = table().select("a", "b", "label")
    comparison = quick(data, "label", model=flat, out=tmp_path / "run")
    with pytest.raises(InputError, match="factory"):
        lw.load(tmp_path / "run")
    loaded = lw.load(tmp_path / "run", factory=flat)
    np.testing.assert_array_equal(loaded.predict_proba(data), comparison.model().predict_proba(data))
    for wrong, says in [
        ("linear", r"give the factory that the run was trained with as --model FILE.py:FUNCTION .*, got 'linear'"),
        (lambda shape, outputs: 1 / 0, r"model: <lambda>\(\(\d+,\), 2\) fails \(ZeroDivisionError: division by zero\)"),
        (lambda shape, outputs: 3, r"model: <lambda>\(\(\d+,\), 2\) must give a torch.nn.Module, got 3"),
        (wider, r"network of wider is not the one that was trained .*size mismatch for 1.0.weight.*give the same"),
        (lambda *sizes: flat(*sizes).double(), r"is not the one that was trained \(1.0.weight must be torch.float64"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            lw.load(tmp_path / "run", factory=wrong)
        assert "damaged" not in str(caught.value)
    failing = lw.load(tmp_path / "run", factory=lambda *sizes: Failing(*flat(*sizes)))
    with pytest.raises(InputError, match=r"the network of your own fails \(ZeroDivisionError: division by zero\)"):
        failing.predict(data)


def wider(shape, outputs):
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs))


# Spreadsheets


def test_formulas_are_quoted_for_spreadsheets():
    frame = pl.DataFrame({"=a": ["=1+1", "+1", "-1", "@x", "\tx", "fine", None], "b": [-1.0] * 7})
    safe = spreadsheet_safe(frame)
    assert safe.columns == ["'=a", "b"]
    assert safe["'=a"].to_list() == ["'=1+1", "+1", "-1", "'@x", "'\tx", "fine", None]
    assert safe["b"].to_list() == [-1.0] * 7


def test_predictions_are_the_label_and_a_probability_a_class(finished, csv):
    frame = finished[0].model().frame(csv)
    assert frame.columns == ["predicted_label", "probability_=yes", "probability_no"]
    np.testing.assert_allclose(frame.select(pl.sum_horizontal("probability_=yes", "probability_no")), 1)
    assert set(frame["predicted_label"]) == {"=yes", "no"}


# Recipes


def recipe_prints(folder: Path) -> float:
    ran = subprocess.run(
        [sys.executable, folder / "recipe.py"],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"on \d+ held-out rows: (\d+\.\d+)$", ran.stdout.strip())
    assert found, ran.stdout
    assert (folder / "recipe.safetensors").is_file()
    return float(found[1])


def test_the_recipe_of_a_csv_runs_as_it_is(run):
    assert 0 <= recipe_prints(run) <= 1


def runs_in_process(folder: Path, capsys) -> str:
    """The recipe's output: a process each would be slow."""
    path = folder / "recipe.py"
    state = torch.get_rng_state()
    exec(compile(path.read_text(), path, "exec"), {"__file__": str(path), "__name__": "recipe"})
    torch.set_rng_state(state)
    return capsys.readouterr().out


OWN = {
    "weighted": lw.Objective(CrossEntropyLoss(label_smoothing=0.1), weights=ClassBalanced(torch.tensor([50.0, 30.0]))),
    "rows": lw.Objective(LDRLoss(lam=0.5), weights=SampleWeights(torch.linspace(0.5, 2, ROWS))),
    "whole": lw.Objective(HingeLoss(), perturb=GaussianNoise(0.25), penalties=[WeightMagnitudePenalty(0.125)]),
}


@pytest.mark.parametrize(
    ("data", "target", "objectives", "says"),
    [
        ("frame", "label", {"CrossEntropyLoss": OWN["weighted"]}, "label_smoothing=0.1"),
        ("frame", "label", {"CrossEntropyLoss": OWN["rows"]}, "sample_weights=torch.tensor(["),
        (
            "frame",
            "label",
            {"CrossEntropyLoss": OWN["whole"]},
            "penalties=[lw.penalties.WeightMagnitudePenalty(strength=0.125)]",
        ),
        ("frame", "amount", {"SquaredLoss": GeneralRobustLoss(learn=True)}, "objective.parameters()"),
        ("frame", "amount", ["HLGaussLoss"], "SquaredLoss"),
        (
            "frame",
            "label",
            {"CrossEntropyLoss": lw.Objective(CrossEntropyLoss(), SmallLossWeights(ROWS))},
            "objective.set_progress(step / 20)",
        ),
        ("arrays", None, [], "HERE / 'data.npz'"),
        ("npz", None, [], "images.npz"),
        ("embedded", None, [], "embedded()"),
    ],
    ids=["weighted", "sample weights", "perturbed", "learnable", "real", "scheduled", "arrays", "npz", "embedded"],
)
def test_recipes_run_as_they_are(data, target, objectives, says, tmp_path, capsys):
    random = np.random.default_rng(0)
    arrays = random.normal(size=(60, 1, 4, 4)), np.arange(60) % 2
    np.savez(tmp_path / "images.npz", X=arrays[0], y=arrays[1])
    given = {
        "frame": table().select("a", "b", "town", *([target] if target else [])),
        "arrays": arrays,
        "npz": tmp_path / "images.npz",
        "embedded": None,
    }[data]
    model = "linear" if data != "npz" else "cnn"
    quick(given, target, objectives, model=model, out=tmp_path / "run", training=Training(16, 20, 10))
    assert says in (tmp_path / "run" / "recipe.py").read_text()
    assert "held-out rows" in runs_in_process(tmp_path / "run", capsys)


def test_a_recipe_cannot_be_made_to_run_what_a_file_is_called(tmp_path, capsys):
    path = tmp_path / 'a"""\nraise SystemExit("run")\n"""b.csv'
    table().select("a", "b", "label").write_csv(path)
    quick(path, "label", [], out=tmp_path / "run")
    assert "held-out rows" in runs_in_process(tmp_path / "run", capsys)


def test_settings_of_two_parts_that_share_a_name_are_not_mixed_up(tmp_path, monkeypatch, capsys):
    name = "ActivePassiveLoss+ClassBalanced"
    monkeypatch.setattr("lossworks.comparison.handover.outcome.winner", lambda _: name)
    quick(table().select("a", "b", "label"), "label", [name], out=tmp_path / "run")
    text = (tmp_path / "run" / "recipe.py").read_text()
    chosen = pl.read_parquet(tmp_path / "run" / "results.parquet").filter(objective=name)["setting"]
    assert re.search(r"ClassBalanced\(class_counts=[^)]*\)[^)]*\)", text)
    assert "beta=1.0" in text
    assert not re.search(r"ClassBalanced\([^\n]*beta=1.0", text), chosen.to_list()
    assert "held-out rows" in runs_in_process(tmp_path / "run", capsys)


def test_a_recipe_of_the_winner_names_its_setting(tmp_path):
    comparison = quick(table().select("a", "b", "label"), "label", {"CrossEntropyLoss": LDRLoss(lam=0.25)})
    comparison.save(tmp_path / "run")
    assert "lw.losses.LDRLoss(lam=0.25)" in (tmp_path / "run" / "recipe.py").read_text()


# Bad run folders


def change(folder: Path, **fields: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def nested(folder: Path, name: str, **fields: object) -> None:
    change(folder, **{name: json.loads((folder / "model.json").read_text())[name] | fields})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: change(f, version=99), "is of version 99, this lossworks reads 1"),
        (lambda f: change(f, version=None), "is of version None"),
        (lambda f: (f / "model.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model.json").write_text("[]"), "version None"),
        (lambda f: (f / "model.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda f: change(f, extra=1), "has the field 'extra'"),
        (lambda f: change(f, classes=["a", "b", "c"]), "3 classes do not fit a binary model of 2 outputs"),
        (lambda f: change(f, classes=["a", "a"]), "do not fit"),
        (lambda f: change(f, classes="ab"), "classes must be of type list"),
        (lambda f: change(f, task="os.system"), "there is no task 'os.system'"),
        (lambda f: change(f, temperature="hot"), "temperature must be of type float"),
        (lambda f: nested(f, "architecture", evil=1), "evil"),
        (lambda f: nested(f, "architecture", model="os.system"), "model must be one of"),
        (lambda f: nested(f, "architecture", input_shape=[99]), "do not fit|does not fit"),
        (lambda f: nested(f, "encoder", columns=[{"name": "a"}]), "damaged"),
        (lambda f: remove(f, "model.json"), "not a finished run folder"),
        (lambda f: remove(f, "model.safetensors"), "not a finished run folder"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "damaged"),
    ],
)
def test_a_damaged_or_foreign_run_folder_is_said_in_one_line(damage, says, run):
    damage(run)
    with pytest.raises(InputError, match=says) as caught:
        lw.load(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)


def test_a_weight_that_is_not_finite_is_damage(run):
    weights = load_file(run / "model.safetensors")
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, run / "model.safetensors")
    with pytest.raises(InputError, match=f"model.safetensors: {name} holds numbers that are not finite"):
        lw.load(run)


def test_the_smallest_temperature_that_a_number_can_be_gives_certain_answers(run, csv):
    change(run, temperature=1e-320)
    model = lw.load(run)
    found = model.predict_proba(csv)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, np.eye(found.shape[1])[model.scores(csv).argmax(dim=1).numpy()])


def test_an_answer_that_is_not_finite_is_an_error_and_names_its_row(run, csv):
    model = lw.load(run)

    class Endless(nn.Module):
        def forward(self, rows):
            found = model.network(rows)
            found[3:5] = torch.tensor([torch.inf, torch.nan])[:, None]
            return found

    for how in ("predict", "predict_proba", "frame"):
        with pytest.raises(InputError, match="line 5: the model's answer is not a finite number, as for 1 other row;"):
            getattr(replace(model, network=Endless()), how)(csv)


def test_a_run_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        lw.load(tmp_path / "nothing")


# Writing


def test_a_finished_run_is_never_written_over(run, csv):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(InputError, match="there is a finished run"):
        quick(csv, "label", out=run, columns={"day": "date"})
    remove(run, "journal.sqlite")
    with pytest.raises(InputError, match="there is a finished run"):
        quick(csv, "label", out=run, columns={"day": "date"})
    assert {path.name: path.read_bytes() for path in run.iterdir()} == {
        name: data for name, data in before.items() if name != "journal.sqlite"
    }


def test_an_unfinished_run_of_another_plan_is_refused(run, csv):
    remove(run, "model.json")
    with pytest.raises(InputError, match="journal is of another plan"):
        quick(csv, "label", out=run, columns={"day": "date"}, seed=1)
    assert (run / "journal.sqlite").is_file()


def test_a_folder_that_cannot_be_made_is_said(csv, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        quick(csv, "label", out=tmp_path / "file" / "run", columns={"day": "date"})


def test_a_folder_without_permission_is_said_and_nothing_is_made(csv, tmp_path, monkeypatch):
    monkeypatch.setattr("lossworks.runs.folder.os.access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written; choose another --out"):
        quick(csv, "label", out=tmp_path / "new" / "run", columns={"day": "date"})
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("at", [2, 3])
def test_a_full_disk_is_said_and_leaves_the_journal_alone(at, csv, tmp_path, monkeypatch):
    """The disk is full when the recipe (2), and the report (3), are written."""
    written = []

    def full(self, *args, **options):
        written.append(self)
        if len(written) >= at:
            self.touch()
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, *args, **options)

    whole = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)") as caught:
        quick(csv, "label", out=tmp_path / "run", columns={"day": "date"})
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "run") == BEGUN
    monkeypatch.undo()
    trained = []
    quick(csv, "label", out=tmp_path / "run", columns={"day": "date"}, watch=trained.append)
    assert trained == [], "what was trained is taken from the journal"
    assert contents(tmp_path / "run") == FILES


def test_a_report_on_its_own_names_no_run_folder(finished, tmp_path):
    path = finished[0].report(tmp_path / "report.html")
    assert "lossworks predict" not in path.read_text()
    assert "lossworks predict" in (finished[1] / "report.html").read_text()
    with pytest.raises(InputError, match="cannot be written"):
        finished[0].report(tmp_path / "nowhere" / "report.html")


def test_saving_twice_gives_the_same_folder(finished, tmp_path):
    comparison, folder = finished
    comparison.save(tmp_path / "again")
    for name in ("model.json", "model.safetensors", "recipe.py", "results.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


# Going on


class Killed(BaseException):
    pass


def test_an_interrupted_run_is_continued_to_the_same_results(finished, csv, tmp_path):
    def killed(progress):
        if progress.running == "FocalLoss":
            raise Killed

    options = {"columns": {"day": "date"}, "out": tmp_path / "run"}
    with pytest.raises(Killed):
        quick(csv, "label", watch=killed, **options)
    assert contents(tmp_path / "run") == BEGUN
    seen = []
    continued = quick(csv, "label", watch=seen.append, **options)
    assert {progress.running for progress in seen} == {"FocalLoss"}
    assert_frame_equal(continued.results, finished[0].results, check_exact=True)
    np.testing.assert_array_equal(continued.model().predict_proba(csv), finished[0].model().predict_proba(csv))


def test_a_partial_run_is_continued_to_the_same_results(finished, csv, tmp_path):
    options = {"columns": {"day": "date"}, "out": tmp_path / "run"}
    assert quick(csv, "label", budget=1e-6, **options).partial
    assert contents(tmp_path / "run") == FILES
    continued = quick(csv, "label", **options)
    assert continued.partial is None
    assert_frame_equal(continued.results, finished[0].results, check_exact=True)


def test_other_data_of_the_same_shape_is_another_plan(csv, tmp_path):
    run = tmp_path / "run"
    quick(csv, "label", budget=1e-6, out=run, columns={"day": "date"})
    other = pl.read_csv(csv).with_columns(b=pl.col("b") + 1)
    with pytest.raises(InputError, match="another plan"):
        quick(other, "label", out=run, columns={"day": "date"})
    with pytest.raises(InputError, match="another plan"):
        quick(csv, "label", out=run, columns={"day": "date"}, model="mlp")


# Scripts


def test_json_is_strict_and_says_what_python_says(finished):
    comparison, _ = finished
    text = json.dumps(comparison.to_json(), allow_nan=False)
    read = json.loads(text)
    assert read["winner"] == comparison.winner
    assert [row["objective"] for row in read["ranking"]] == comparison.ranking["objective"].to_list()


def test_nothing_is_unpickled(finished, csv, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    lw.load(finished[1])  # what torch imports when it is first used is run by exec, too
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(builtins, "exec", refuse)
    assert len(lw.load(finished[1]).predict(csv)) == ROWS
