"""Each task from the data to what is handed over, and a task that is added as one file."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import mean_gamma_deviance, mean_poisson_deviance

import lossworks as lw
from lossworks.comparison import InputError, Training, read
from lossworks.comparison.tasks import known
from lossworks.comparison.tasks.base import Target
from lossworks.comparison.tasks.known import find_task, tasks
from lossworks.losses import PoissonLoss, SquaredLoss
from lossworks.report.render import render
from lossworks.roles import KINDS

QUICK = Training(batch_size=32, max_steps=150, eval_every=25, lr=3e-2)
ROOT = Path(lw.__file__).parent
SMALL = {"folds": 2, "repeats": 1, "training": QUICK, "model": "linear"}


def script(folder: Path) -> str:
    """What a run's recipe says when it is run."""
    done = subprocess.run(
        [sys.executable, folder / "recipe.py"], capture_output=True, text=True, check=True, cwd=folder, timeout=300
    )
    return done.stdout


@pytest.fixture
def visits(tmp_path):
    """A table with counts of a mean that two columns say, as a file."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "visits": rng.poisson(np.exp(0.3 + 0.8 * x[:, 0]))})
    frame.write_csv(tmp_path / "visits.csv")
    return tmp_path / "visits.csv"


# Counts


def test_counts_from_the_table_to_what_is_handed_over(visits, tmp_path):
    folder = tmp_path / "run"
    result = lw.compare(visits, "visits", task="counts", objectives=["SquaredLoss", "HLGaussLoss"], out=folder, **SMALL)
    assert result.plan.metric.name == "poisson_deviance"
    assert result.plan.reference == "PoissonLoss"
    for row in result.results.filter(pl.col("objective") == "PoissonLoss").to_dicts():
        assert 0 < row["poisson_deviance"] < 1.5
    means = dict(result.ranking.select("objective", "poisson_deviance").iter_rows())
    assert set(means) == {"PoissonLoss", "SquaredLoss", "HLGaussLoss", "gradient boosting"}
    assert means["PoissonLoss"] < means["SquaredLoss"]
    model = lw.load(folder)
    frame = pl.read_csv(visits)
    expected = model.predict(frame)
    assert (expected > 0).all()
    nothing_known = np.full(400, frame["visits"].mean())
    assert mean_poisson_deviance(frame["visits"], expected) < 0.8 * mean_poisson_deviance(
        frame["visits"], nothing_known
    )
    assert model.frame(frame).columns == ["predicted_visits"]
    assert json.loads((folder / "model.json").read_text())["task"] == "counts"
    report = (folder / "report.html").read_text()
    for heading in ("Observed over expected", "How often each count occurs", "a count", "Poisson deviance"):
        assert heading in report
    assert "Poisson deviance (of counts in units of their mean) on 60 held-out rows" in script(folder)


def test_a_real_loss_wins_on_counts_and_its_recipe_runs(visits, tmp_path):
    own = {"PoissonLoss": SquaredLoss()}
    lw.compare(visits, "visits", task="counts", objectives=own, out=tmp_path / "run", **SMALL)
    assert "mean squared error (standardised)" in script(tmp_path / "run")
    assert (lw.load(tmp_path / "run").predict(visits) > 0).all()


def test_what_the_loss_is_trained_on_and_what_the_head_makes_of_it_are_in_one_unit():
    task, y = find_task("counts"), torch.tensor([0.0, 2.0, 4.0, 9.0])
    scale = task.scale(PoissonLoss.kind, y, torch.arange(3))
    assert (scale.mean, scale.std) == (0.0, 2.0)
    head = task.head(PoissonLoss(), 1, scale)
    assert torch.allclose(head(torch.tensor([[0.0], [1.0]])), torch.tensor([2.0, 2.0 * np.e]))
    real = task.head(SquaredLoss(), 1, task.scale(SquaredLoss.kind, y, torch.arange(3)))
    assert torch.allclose(real(torch.tensor([[-9.0], [0.0]])), torch.tensor([0.02, 2.0]))


def test_where_all_counts_to_fit_on_are_zero_the_unit_is_one():
    scale = find_task("counts").scale(PoissonLoss.kind, torch.tensor([0.0, 0.0, 3.0]), torch.arange(2))
    assert (scale.mean, scale.std) == (0.0, 1.0)


def test_counts_are_never_taken_for_granted():
    numbers = {"x": list(range(200)), "y": [k % 4 for k in range(200)]}
    assert read(numbers, target="y").task.name == "multiclass"
    assert read(numbers, target="y", task="counts").task.name == "counts"


@pytest.mark.parametrize(
    ("values", "message"), [([0, 1, -2], "has -2"), ([0.5, 1, 2], "has 0.5"), (["a", "b", "c"], "holds text")]
)
def test_what_is_no_count_is_named(values, message):
    with pytest.raises(InputError, match=rf"column 'y' \(the target\) {message}, so it is not counts"):
        read({"x": [1, 2, 3], "y": values}, target="y", task="counts")


def test_the_panels_of_counts_say_how_far_expectations_can_be_trusted():
    task, rng = find_task("counts"), np.random.default_rng(0)
    expected = rng.gamma(2, 1, 5000)
    observed = rng.poisson(expected).astype(float)
    shown = {"right": [task.portrait(torch.tensor(expected), 1.0, observed)]}
    shown["half"] = [task.portrait(torch.tensor(expected / 2), 1.0, observed)]
    bands, occurring, *_ = task.panels(shown, Target(observed), "right")
    for dot in bands.figures["right"][0].dots:
        assert dot.y == pytest.approx(dot.x, rel=0.25, abs=0.1)
        assert dot.weight == 500
    for dot in bands.figures["half"][0].dots:
        assert dot.y == pytest.approx(2 * dot.x, rel=0.25, abs=0.1)
    for bar in occurring.figures["right"]:
        assert bar.expected == pytest.approx(bar.observed, abs=0.02)
    zero, *_ = occurring.figures["half"]
    assert zero.expected > zero.observed + 0.1
    large = task.panels(
        {"right": [task.portrait(torch.tensor(expected * 50), 1.0, observed * 50)]}, Target(observed * 50), "right"
    )
    assert "occurring" not in [panel.name for panel in large]


# A task that is added


@pytest.fixture
def amounts(tmp_path, monkeypatch):
    """The package of tasks with one more file in it, in this process and in those that it starts."""
    folder = tmp_path / "more"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("amounts.py"), folder / "amounts.py")
    package = importlib.import_module("lossworks.comparison.tasks")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    known.tasks.cache_clear()
    yield known.tasks()["amounts"]
    monkeypatch.undo()
    sys.modules.pop("lossworks.comparison.tasks.amounts", None)
    known.tasks.cache_clear()


def test_a_new_task_is_one_file(amounts, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    price = rng.gamma(4, np.exp(1 + 0.7 * x[:, 0]) / 4) + 1e-3
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "price": price})
    assert next(iter(tasks())) == "amounts", "it is asked first, as its number says"
    result = lw.compare(frame, "price", out=tmp_path / "run", **SMALL)
    assert result.plan.task == amounts
    assert [candidate.name for candidate in result.plan.candidates] == ["PoissonLoss", "AbsoluteLoss"]
    assert result.plan.metric.name == "gamma_deviance"
    for name in ("gamma_deviance", "mae"):
        assert result.results[name].is_finite().all()
    assert result.ranking["objective"].to_list().count("gradient boosting") == 1
    assert "gamma deviance" in result.answer
    report = (tmp_path / "run" / "report.html").read_text()
    for words in ("How many times too much", "an amount of money", "Gamma deviance", "too little"):
        assert words in report
    assert "residuals" not in report
    model = lw.load(tmp_path / "run")
    assert model.task == amounts
    predicted = model.frame(frame)["predicted_price"].to_numpy()
    assert mean_gamma_deviance(price, predicted) < mean_gamma_deviance(price, np.full(300, price.mean()))
    with pytest.raises(InputError, match="'price' is an amount: there are no class probabilities"):
        model.predict_proba(frame)
    with pytest.raises(InputError, match="'price' is an amount, and there is no accuracy to attack"):
        lw.compare(frame, "price", attack="linf:0.1", **SMALL)
    with pytest.raises(InputError, match="did you mean 'gamma_deviance'"):
        lw.compare(frame, "price", metric="gama_deviance", **SMALL)
    recipe = (tmp_path / "run" / "recipe.py").read_text()
    exec(compile(recipe, "recipe.py", "exec"), {"__file__": str(tmp_path / "run" / "recipe.py")})
    assert (tmp_path / "run" / "recipe.safetensors").is_file()


def test_two_tasks_of_one_name_are_an_error(amounts, tmp_path):
    (tmp_path / "more" / "again.py").write_text((tmp_path / "more" / "amounts.py").read_text())
    known.tasks.cache_clear()
    with pytest.raises(ValueError, match="two tasks are called amounts"):
        known.tasks()


def test_nobody_compares_the_name_of_a_task_or_a_kind():
    """Not in a comparison, not as a key that something is looked up by, not in a type: who wants to know asks."""
    names = {*tasks(), *KINDS}
    allowed = [ROOT / "comparison" / "tasks", ROOT / "roles" / "kinds.py"]
    asked = []
    for path in sorted(ROOT.rglob("*.py")):
        if any(path == one or one in path.parents for one in allowed):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                said = [node.left, *node.comparators]
            elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                said = [node.slice]
            elif isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                said = [ast.Constant(key) for key in keys] if len(names & set(keys)) >= 2 else []
            else:
                continue
            found = {one.value for each in said for one in ast.walk(each) if isinstance(one, ast.Constant)}
            asked += [f"{path.relative_to(ROOT)}:{node.lineno} {found & names}" for _ in [0] if found & names]
    assert not asked


@pytest.mark.parametrize("name", list(tasks()))
def test_every_task_says_what_the_report_and_the_recipe_need(name):
    task = find_task(name)
    assert task == type(task)()
    assert hash(task) == hash(type(task)())
    assert task.metrics
    assert task.fits(lw.catalog.parts()[task.reference].part.kind)
    assert all(term in lw.catalog.HELPS for term in task.troubles)
    loss = lw.losses.SquaredLoss() if task.fits(SquaredLoss.kind) else lw.losses.CrossEntropyLoss()
    lines = task.recipe(loss)
    ast.parse(lines.target)
    ast.parse(lines.error)


def test_the_report_of_every_task_draws_its_panels(visits):
    result = lw.compare(visits, "visits", task="real", objectives=["HuberLoss"], **SMALL)
    assert result.plan.metric.name == "rmse"
    from lossworks.comparison.handover.reporting import report_data

    data = report_data(result, None)
    assert [panel.name for panel in data.panels] == ["residuals", "predictions"]
    assert "Predicted over actual" in render(data)
