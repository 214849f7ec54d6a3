import os
import signal
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

import lossworks as lw
from lossworks.catalog import parts
from lossworks.comparison import InputError, Training, read
from lossworks.comparison.candidates import OUTSIDE, candidate_from_name, choose_candidates
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.plan import Group, Replica, jobs_of, make_plan
from lossworks.comparison.train.engine import train
from lossworks.losses import (
    AdaptiveLDRLoss,
    CrossEntropyLoss,
    EnsLoss,
    FocalLoss,
    GeneralRobustLoss,
    HingeLoss,
    HLGaussLoss,
    LDRLoss,
    LogisticLoss,
    SquaredLoss,
)
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from lossworks.roles import Loss
from lossworks.weights import ClassBalanced, SampleWeights

QUICK = Training(batch_size=16, max_steps=40, eval_every=10)
ROWS = 90


def columns(rows: int = ROWS) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 3))
    score = x[:, 0] + 0.5 * x[:, 1] + 0.4 * random.normal(size=rows)
    return {
        "a": x[:, 0],
        "b": x[:, 1],
        "c": x[:, 2],
        "team": random.choice(["red", "blue"], rows),
        "two": np.where(score > 0.2, "yes", "no"),
        "three": np.digitize(score, [-0.5, 0.5]).astype(str),
        "amount": 100 + 20 * score,
    }


def table(target: str, *, group: bool = False) -> pl.DataFrame:
    names = ["a", "b", "c", *(["team"] if group else []), target]
    return pl.DataFrame({name: values for name, values in columns().items() if name in names})


def quick(target: str = "two", objectives=("FocalLoss",), **options):
    given = {"folds": 2, "repeats": 1, "training": QUICK, "model": "linear"} | options
    return lw.compare(given.pop("data", table(target)), target, objectives=objectives, **given)


@pytest.fixture(scope="module")
def binary():
    return quick("two", ["FocalLoss", "HingeLoss", "LogisticLoss"], folds=3, repeats=2, model="mlp")


@pytest.fixture(scope="module")
def real():
    return quick("amount", ["HuberLoss", "HLGaussLoss"], folds=3, model="mlp")


# What comes back


def test_ranking_has_every_objective_once_best_mean_first_with_its_verdict(binary):
    ranking = binary.ranking
    assert set(ranking["objective"]) == {"CrossEntropyLoss", "FocalLoss", "HingeLoss", "LogisticLoss", OUTSIDE}
    assert ranking["objective"].n_unique() == ranking.height
    assert ranking["accuracy"].to_list() == sorted(ranking["accuracy"].to_list(), reverse=True)
    assert set(ranking["verdict"]) <= {"reference", "better", "equal", "worse", "unclear"}
    assert ranking.filter(verdict="reference")["objective"].to_list() == ["CrossEntropyLoss"]
    wanted = {"setting", "low", "high", "difference", "difference_low", "difference_high", "p", "p_adjusted"}
    assert wanted | {"p_better", "p_equal", "p_worse", "rank", "log_loss", "auroc", "ece"} <= set(ranking.columns)
    judged = ranking.filter(pl.col("verdict") != "reference")
    np.testing.assert_allclose(judged.select(pl.sum_horizontal("p_better", "p_equal", "p_worse")), 1, atol=1e-9)


def test_means_and_differences_are_those_of_the_chosen_results(binary):
    chosen = binary.results.filter("chosen")
    of = {name: chosen.filter(objective=name).sort("repeat", "fold")["accuracy"] for name in chosen["objective"]}
    for row in binary.ranking.to_dicts():
        assert row["accuracy"] == pytest.approx(of[row["objective"]].mean())
        assert row["difference"] == pytest.approx((of[row["objective"]] - of["CrossEntropyLoss"]).mean(), abs=1e-12)


def test_every_objective_is_tested_on_the_same_folds_and_one_setting_is_chosen_in_each(binary):
    chosen = binary.results.filter("chosen")
    for name in chosen["objective"].unique():
        own = chosen.filter(objective=name)
        assert sorted(zip(own["repeat"], own["fold"], strict=True)) == [(r, f) for r in range(2) for f in range(3)]


def test_objectives_learn_what_can_be_learned(binary, real):
    assert binary.ranking["accuracy"].min() > 0.7
    spread = float(np.std(columns()["amount"]))
    assert real.ranking.filter(pl.col("objective") != OUTSIDE)["rmse"].max() < 0.9 * spread


def test_real_targets_are_ranked_by_rmse_lowest_first(real):
    assert real.plan.metric.name == "rmse"
    assert real.ranking["rmse"].to_list() == sorted(real.ranking["rmse"].to_list())
    assert {"mae", "r2"} <= set(real.ranking.columns)
    assert "CrossEntropyLoss" not in real.ranking["objective"]


def test_multiclass_runs_and_imbalance_chooses_balanced_accuracy():
    labels = np.where(columns()["a"] > 1.4, "rare", np.where(columns()["b"] > 0, "left", "right"))
    result = quick("y", data=table("two").drop("two").with_columns(y=pl.Series(labels)))
    assert result.plan.task.name == "multiclass"
    assert result.plan.metric.name == "balanced_accuracy"
    assert "balanced accuracy" in result.answer


def test_answer_is_one_sentence_about_reference_and_outside_line(binary):
    assert "CrossEntropyLoss" in binary.answer
    assert "Gradient boosting on the same folds: " in binary.answer
    assert "\n" not in binary.answer


def test_notes_of_reading_are_among_the_findings():
    data = table("two").with_columns(two=pl.when(pl.int_range(pl.len()) > 1).then("two"))
    found = quick("two", data=data).findings
    assert any("2 rows without a target were left out" in finding.text for finding in found)


# Seeds


def test_the_same_seed_gives_bit_identical_results_and_another_does_not():
    first, again, other = (quick("two", ["LDRLoss", "EnsLoss"], seed=seed, model="mlp") for seed in (3, 3, 4))
    assert_frame_equal(first.results, again.results, check_exact=True)
    assert_frame_equal(first.ranking, again.ranking, check_exact=True)
    assert not first.results.equals(other.results)


def test_results_do_not_depend_on_what_else_is_compared_nor_on_torchs_own_seed():
    torch.manual_seed(1)
    alone = quick("two", ["FocalLoss"])
    torch.manual_seed(2)
    beside = quick("two", ["LDRLoss", "FocalLoss"])
    focal = [result.results.filter(objective="FocalLoss") for result in (alone, beside)]
    assert_frame_equal(*focal, check_exact=True)


def test_torchs_generator_and_the_signal_handler_stay_as_they_were():
    state, handler = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    quick()
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGINT) is handler


# Objectives


def test_no_objectives_means_those_that_the_findings_point_to():
    result = quick("two", None)
    assert {"LDRLoss", "FocalLoss", "BrierLoss"} <= set(result.ranking["objective"])
    assert all(candidate.why for candidate in result.plan.candidates)


def test_own_losses_and_objectives_are_compared_under_their_names():
    weights = SampleWeights(torch.linspace(0.5, 2, ROWS))
    given = {
        "softer": LDRLoss(lam=2.0),
        "weighted": lw.Objective(CrossEntropyLoss(), weights=ClassBalanced(torch.tensor([50.0, 40.0]))),
        "rows weighted": lw.Objective(CrossEntropyLoss(), weights=weights),
        "noisy": lw.Objective(CrossEntropyLoss(), perturb=GaussianNoise(0.1)),
        "small": lw.Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(0.01)]),
    }
    result = quick("two", given)
    assert set(result.ranking["objective"]) == {*given, "CrossEntropyLoss", OUTSIDE}
    scores = result.results.filter(pl.col("objective") != OUTSIDE).group_by("objective").agg(pl.col("log_loss").mean())
    assert scores["log_loss"].n_unique() == 6, "every part of an objective changes the training"


def test_an_own_objective_under_the_references_name_is_the_reference():
    result = quick("two", {"FocalLoss": FocalLoss(), "CrossEntropyLoss": CrossEntropyLoss(label_smoothing=0.3)})
    assert result.plan.reference == "CrossEntropyLoss"
    assert result.ranking["objective"].to_list().count("CrossEntropyLoss") == 1
    assert result.results.filter(objective="CrossEntropyLoss")["setting"].unique().to_list() == ["as given"]


def test_an_objective_under_two_names_is_given_the_same_training_rows(binary):
    twice = quick("two", {"one": CrossEntropyLoss(), "two": CrossEntropyLoss()})
    assert twice.ranking.filter(pl.col("objective").is_in(["one", "two"]))["verdict"].to_list() == ["unclear"] * 2


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        ("two", LogisticLoss()),
        ("two", HingeLoss()),
        ("two", EnsLoss()),
        ("three", AdaptiveLDRLoss(num_samples=ROWS)),
        ("amount", HLGaussLoss(-3.0, 3.0, num_bins=11)),
        ("amount", GeneralRobustLoss(learn=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_losses_that_need_more_than_logits_and_labels(target, loss):
    result = quick(target, {"own": loss}, model="mlp")
    own = result.results.filter(objective="own")
    assert own[result.plan.metric.name].is_finite().all()
    assert len(result.model().predict(table(target))) == ROWS


def test_a_learnable_loss_learns_without_touching_the_users_instance():
    loss = GeneralRobustLoss(learn=True)
    before = [parameter.clone() for parameter in loss.parameters()]
    quick("amount", {"own": loss})
    assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def test_a_diverging_objective_is_unclear_and_the_rest_goes_on():
    class Absurd(SquaredLoss):
        def per_sample(self, output, target):
            return super().per_sample(output, target) * float("inf")

    result = quick("amount", {"absurd": Absurd(), "fine": SquaredLoss()})
    row = result.ranking.filter(objective="absurd").row(0, named=True)
    assert row["verdict"] == "unclear"
    assert row["rmse"] is None, "an untrained model has no score"
    assert sum("absurd: a training diverged before its first evaluation" in one.text for one in result.findings) == 1
    assert result.ranking.filter(objective="fine")["rmse"].is_finite().all()
    assert result.answer


def test_a_diverging_reference_is_said_and_not_a_crash(tmp_path):
    class Absurd(SquaredLoss):
        def per_sample(self, output, target):
            return super().per_sample(output, target) * float("inf")

    result = quick("amount", {"SquaredLoss": Absurd(), "fine": SquaredLoss()})
    assert result.answer
    assert set(result.ranking.filter(pl.col("role") == "candidate")["verdict"]) == {"unclear"}


EVERY = [
    (entry.name, task)
    for entry in parts().values()
    if isinstance(entry.part, type) and issubclass(entry.part, Loss) and entry.name != "MultiLabelAsymmetricLoss"
    for task in {"classes": ("two", "three"), "binary": ("two",), "real": ("amount",)}.get(entry.part.kind.name, ())
]


@pytest.mark.parametrize(("name", "target"), EVERY)
def test_every_loss_of_the_catalog_trains_in_all_its_settings(name, target):
    dataset = read(table(target), target=target)
    candidate = candidate_from_name(name, "tested", dataset.task)
    task = dataset.task
    plan = make_plan(dataset, (candidate,), metric=task.metrics[0], folds=2, repeats=1, seed=0, training=QUICK)
    group = Group(0, 0, tuple(Replica(setting, 0, setting) for setting in range(candidate.size)))
    x = torch.from_numpy(dataset.features.to_numpy())
    training = Training(batch_size=16, max_steps=20, eval_every=10)
    jobs = jobs_of(plan, group, dataset)
    trained = train(x, task.tensor(dataset.target), jobs, Architecture("linear"), training, task.metrics[0], task=task)
    assert len(trained.best_score) == candidate.size
    assert all(np.isfinite(score) for score in trained.best_score)
    assert all(trained.outputs(number, torch.arange(5)).isfinite().all() for number in range(candidate.size))


# Groups


def test_a_group_column_adds_the_worst_groups_metric_and_is_no_feature():
    result = quick("two", data=table("two", group=True), group="team")
    assert "team" not in "".join(result.encoder.names)
    chosen = result.results.filter("chosen")
    assert (chosen["worst_group_accuracy"] <= chosen["accuracy"] + 1e-12).all()
    assert "worst_group_accuracy" in result.ranking.columns


def test_the_worst_group_may_decide():
    result = quick("two", data=table("two", group=True), group="team", metric="worst_group_accuracy")
    chosen = result.results.filter("chosen")
    assert result.ranking["worst_group_accuracy"].is_sorted(descending=True)
    assert (chosen["worst_group_accuracy"] <= chosen["accuracy"] + 1e-12).all()
    assert "worst group" in result.answer


def test_with_groups_the_weights_that_guard_the_worst_are_tried():
    grouped = read(table("two", group=True), target="two", group="team")
    names = [candidate.name for candidate in choose_candidates(grouped, (), None)]
    assert {f"CrossEntropyLoss+{weights}" for weights in ("GroupDRO", "KLDRO")} <= set(names)
    plain = read(table("two"), target="two")
    assert not [candidate for candidate in choose_candidates(plain, (), None) if "+" in candidate.name]


def test_a_metric_of_groups_needs_groups():
    with pytest.raises(InputError, match="metric: 'worst_group_accuracy' needs groups"):
        quick("two", metric="worst_group_accuracy")


# Models


def flat(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.Tanh(), nn.Linear(8, outputs))


def normalised(shape, outputs):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


def images(rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(rows) % 2
    return random.normal(size=(rows, 1, 6, 6)) + labels[:, None, None, None] * np.eye(6), labels


def test_a_cnn_on_images():
    x, y = images()
    result = quick("y", data=(x, y), model="cnn", objectives=[])
    assert result.ranking["objective"].to_list()
    assert result.model().predict_proba(x[:5]).shape == (5, 2)


def test_a_factory_of_the_users_own():
    result = quick("two", model=flat)
    assert result.architecture.described() == "a model of your own"
    assert result.model().predict_proba(table("two")).shape == (ROWS, 2)


def test_a_factory_with_batch_normalisation_is_trained_all_the_same():
    result = quick("two", model=normalised)
    assert result.ranking["accuracy"].is_finite().all()
    norm = next(m for m in result.model().network.modules() if isinstance(m, nn.BatchNorm1d))
    assert not torch.equal(norm.running_mean, torch.zeros(8)), "its running statistics are those of the training"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("mpl", "did you mean 'mlp'"),
        ("cnn", "needs images"),
        (lambda shape, outputs: nn.Linear(99, outputs), "fails on two rows"),
        (
            lambda shape, outputs: nn.Linear(shape[0], 7),
            r"must map two rows to outputs of shape \(2, 3\), got \(2, 7\)",
        ),
        (lambda shape, outputs: 3, r"model: <lambda>\(\(3,\), 3\) must give a torch.nn.Module, got 3"),
        (lambda shape, outputs: 1 / 0, r"model: <lambda>\(\(3,\), 3\) fails \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_a_model_that_does_not_fit_is_said_before_anything_is_trained(model, says, tmp_path):
    with pytest.raises(InputError, match=says):
        quick("two", model=model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Unbounded(nn.Linear):
    def forward(self, x):
        return super().forward(x) * torch.inf


@pytest.mark.parametrize("target", ["three", "amount"])
def test_of_a_reference_that_diverged_everywhere_there_is_a_report_and_no_model(target, tmp_path):
    def model(shape, outputs):
        return Unbounded(shape[0], outputs)

    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"the reference \w+ diverged.*what was reached is in") as caught:
        quick(target, [], model=model, out=out)
    assert str(out / "report.html") in str(caught.value)
    assert "gradient boosting" in (out / "report.html").read_text()
    assert not (out / "model.json").exists()
    with pytest.raises(InputError, match="every model of the reference"):
        lw.compare(table(target), resume=out, model=model)
    cut_short = quick(target, [], model=model, budget=1e-6)
    assert "not a number" in cut_short.answer
    assert cut_short.report(tmp_path / "short.html").exists()


@pytest.mark.parametrize("target", ["two", "amount"])
def test_a_last_model_that_diverges_is_not_handed_over(target, monkeypatch):
    comparison = quick(target, [])
    trained = SimpleNamespace(outputs=lambda number, rows: torch.full((len(rows), 2), torch.nan))
    monkeypatch.setattr("lossworks.comparison.handover.comparison.train", lambda *_, **__: trained)
    with pytest.raises(InputError, match="that was trained on all rows diverged"):
        comparison.model()


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"folds": 1}, "folds must be an int >= 2"),
        ({"seed": 2**63}, r"seed must be an int >= 0 and below 2\*\*63"),
        ({"rope": 10**400}, "rope must be a number >= 0"),
        ({"repeats": 0}, "repeats must be an int >= 1"),
        ({"repeats": 10**6}, "repeats must be an int >= 1 and <= 1,000, got 1000000"),
        ({"budget": -1.0}, "budget must be a number of seconds > 0"),
        ({"device": "tpu"}, "device must be"),
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"metric": "rmse"}, "rmse"),
        ({"objectives": ["FocalLos"]}, "did you mean 'FocalLoss'"),
        ({"objectives": ["HuberLoss"]}, "is for real values, but the target is binary"),
        ({"objectives": {"gradient boosting": FocalLoss()}}, "name of the outside line"),
        ({"objectives": {"mine": nn.CrossEntropyLoss()}}, "must be a lossworks Loss or Objective"),
        ({"objectives": ["FocalLoss+LDRLoss"]}, "exactly one loss"),
        ({"task": "multi"}, "did you mean 'multiclass'"),
        ({"rope": -0.1}, "rope"),
        ({"seed": "one"}, "seed"),
    ],
)
def test_options_that_do_not_fit_are_said_in_one_line_and_leave_nothing_behind(options, says, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        quick("two", out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# Interruptions


def test_a_budget_that_is_used_up_gives_a_partial_result_with_the_reference():
    result = quick("two", ["FocalLoss", "LDRLoss"], budget=1e-6)
    assert "budget of 1e-06 s" in result.partial
    assert result.ranking["objective"].to_list() == ["CrossEntropyLoss"]
    assert result.answer.startswith("No objective is shown to be better")
    assert len(result.model().predict(table("two"))) == ROWS


def interrupt_when(running: str):
    def watch(progress):
        if progress.running == running:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_ctrl_c_ends_cleanly_with_what_is_finished(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    result = quick("two", ["FocalLoss", "LDRLoss"], watch=interrupt_when("LDRLoss"), out=tmp_path / "run")
    assert result.partial == "stopped by the user"
    assert set(result.ranking["objective"]) == {"CrossEntropyLoss", "FocalLoss", OUTSIDE}
    assert (tmp_path / "run" / "report.html").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_reference_is_done_is_ctrl_c_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quick("two", watch=interrupt_when("CrossEntropyLoss"), out=tmp_path / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


def test_watch_sees_everything_that_runs_and_only_ever_more_of_it():
    seen = []
    quick("two", ["FocalLoss", "LDRLoss"], watch=seen.append)
    assert {"CrossEntropyLoss", "FocalLoss", "LDRLoss", OUTSIDE} == {progress.running for progress in seen}
    assert all(a.share <= b.share and a.done <= b.done for a, b in pairwise(seen))
    assert all(0 <= p.share <= 1 and 0 <= p.done <= p.total for p in seen)
    assert seen[-1].share == 1
    assert seen[-1].best
    assert all(p.seconds_left is None or p.seconds_left >= 0 for p in seen)
