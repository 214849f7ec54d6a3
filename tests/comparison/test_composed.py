"""Every weighting, perturbation and penalty of the catalog beside cross-entropy, as a user may ask for it by name."""

import inspect
import re

import numpy as np
import pytest
import torch

import lossworks as lw
from lossworks.catalog import parts
from lossworks.comparison import InputError
from lossworks.comparison.candidates import candidate_from_name
from lossworks.comparison.handover.recipe import FROM_DATA, _objective
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.train.engine import train
from lossworks.comparison.train.jobs import Job, Training
from lossworks.metrics.registry import find_metric
from lossworks.perturb import PGD
from lossworks.roles import Penalty, Perturbation, Weighting

ROWS = 90
NAMES = [
    name
    for name, entry in parts().items()
    if inspect.isclass(entry.part)
    and issubclass(entry.part, (Weighting, Perturbation, Penalty))
    and "sample_weights" not in entry.part.needs
]
SHORT = Training(batch_size=16, max_steps=6, eval_every=3)


@pytest.fixture
def data(generator):
    x = torch.randn(ROWS, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long(), torch.arange(ROWS) % 3


def jobs(name: str, target: torch.Tensor) -> list[Job]:
    candidate = candidate_from_name(f"CrossEntropyLoss+{name}", "", Multiclass(), grouped=True)
    rows = np.arange(ROWS)
    facts = Multiclass().training_facts(target.numpy(), rows[:60], 3, 3)
    fit, inner = torch.arange(60), torch.arange(60, ROWS)
    return [Job(candidate.objective(0, facts), fit, inner, seed, seed) for seed in range(3)]


def rounded(objective: lw.Objective) -> str:
    """What it prints, its numbers in so many digits as float32 has."""
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.6g}", repr(objective))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_trained_for_all_replicas_at_once(name, data):
    x, y, group = data
    metric = find_metric("accuracy")
    trained = train(x, y, jobs(name, y), Architecture("mlp", 8), SHORT, metric, task=Multiclass(), group=group)
    assert trained.notes == [], "none is forced back to one at a time"
    assert trained.complete
    for replica in range(3):
        assert bool(trained.outputs(replica, torch.arange(ROWS)).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_writes_it_as_code_that_builds_the_same(name, data):
    objective = jobs(name, data[1])[0].objective
    names = {"lw": lw, "torch": torch, "y": data[1], "fit": torch.arange(60), "inf": "no name that the recipe has"}
    names["dataset"] = type("Dataset", (), {"classes": ("a", "b", "c"), "group_names": ("g", "h", "i")})
    candidate = candidate_from_name(f"CrossEntropyLoss+{name}", "", Multiclass(), grouped=True)
    settings = dict(zip(candidate.parts, candidate.settings[0], strict=True))
    built = eval(_objective(objective, settings, FROM_DATA | dict(Multiclass().recipe(objective.loss).facts)), names)
    assert rounded(built) == rounded(objective)


def test_the_data_range_of_an_attack_is_in_the_recipe():
    objective = lw.Objective(lw.losses.CrossEntropyLoss(), perturb=PGD(0.1, bounds=(0.0, 1.0)))
    assert "bounds=(0.0, 1.0)" in _objective(objective, {}, {})


def test_groups_are_asked_for_and_reach_the_model_that_is_handed_over(tmp_path):
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(ROWS, 2)), np.arange(ROWS) % 3
    table = {"a": x[:, 0], "b": x[:, 1], "g": [f"g{k}" for k in group], "y": np.where(x[:, 0] > 0, "yes", "no")}
    quick = {"folds": 2, "repeats": 1, "training": SHORT, "model": "linear"}
    with pytest.raises(InputError, match="needs groups: name their column"):
        lw.compare(table, "y", objectives=["CrossEntropyLoss+GroupDRO"], **quick)
    own = {"CrossEntropyLoss": lw.Objective(lw.losses.CrossEntropyLoss(), lw.weights.GroupDRO(3))}
    with pytest.raises(InputError, match="needs groups: name their column"):
        lw.compare(table, "y", objectives=own, **quick)
    result = lw.compare(table, "y", objectives=own, group="g", out=tmp_path / "run", **quick)
    assert result.winner == "CrossEntropyLoss"
    assert "GroupDRO" in (tmp_path / "run" / "recipe.py").read_text()


def test_every_group_is_reported_beside_the_worst(tmp_path):
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(ROWS, 2)), np.arange(ROWS) % 3
    y = np.where((x[:, 0] > 0) ^ ((group == 2) & (rng.random(ROWS) < 0.4)), "yes", "no")
    table = {"a": x[:, 0], "b": x[:, 1], "g": [f"<g{k}>" for k in group], "y": y}
    result = lw.compare(
        table, "y", objectives=["FocalLoss"], metric="accuracy", group="g", out=tmp_path / "run",
        folds=2, repeats=1, training=SHORT, model="linear",
    )  # fmt: skip
    chosen = result.results.filter("chosen")
    for row in chosen.to_dicts():
        assert row["worst_group_accuracy"] == min(row["groups"])
        tested = next(split.test for split in result.plan.splits if split.fold == row["fold"])
        assert row["accuracy"] == pytest.approx(np.average(row["groups"], weights=np.bincount(group[tested])))
    found = result.groups
    assert found["group"].unique(maintain_order=True).to_list() == ["<g0>", "<g1>", "<g2>"]
    own = chosen.filter(objective="CrossEntropyLoss")["groups"].to_list()
    assert found.filter(objective="CrossEntropyLoss")["mean"].to_list() == pytest.approx(np.mean(own, axis=0).tolist())
    assert result.to_json()["groups"][0]["group"] == "<g0>"
    report = (tmp_path / "run" / "report.html").read_text()
    assert "By group" in report
    assert "&lt;g0&gt;" in report
    assert "<g0>" not in report


@pytest.mark.parametrize("name", ["DSUStyle", "KLDRORisk", "kl_dro_weights"])
def test_what_has_no_role_in_an_objective_is_no_candidate(name):
    with pytest.raises(InputError, match="no part is called"):
        candidate_from_name(f"CrossEntropyLoss+{name}", "", Multiclass())
