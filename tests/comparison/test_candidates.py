import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import lossworks as lw
from lossworks import catalog
from lossworks.catalog import Entry, parts
from lossworks.checks import InputError
from lossworks.comparison import Training
from lossworks.comparison.attack import Attack
from lossworks.comparison.candidates import MOST, OUTSIDE, _place, candidate_from_name, choose_candidates
from lossworks.comparison.findings import Finding
from lossworks.comparison.read.dataset import read
from lossworks.comparison.tasks.known import tasks
from lossworks.losses import CrossEntropyLoss, HuberLoss, LDRLoss
from lossworks.roles import CLASSES, BatchLoss, Loss

QUICK = Training(batch_size=16, max_steps=20, eval_every=10)
NOISE = Finding("label_noise", "12 % of labels look wrong", {}, ("noisy labels",), "notice")
TAILS = Finding("tails", "the tails are heavy", {}, ("heavy tails", "outliers"), "notice")


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return read((rng.normal(size=(120, 3)).astype(np.float32), np.repeat(["a", "b", "c"], [60, 40, 20])))


def names(candidates):
    return [candidate.name for candidate in candidates]


class Agreement(BatchLoss):
    """Cross-entropy whose rows count by how usual their label is in the batch."""

    kind = "classes"
    papers = ("zhu2023ldr",)
    helps = ("noisy labels",)
    settings = ({}, {"power": 2.0})

    def __init__(self, power: float | torch.Tensor = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, output, target, *, sample_weight=None):
        share = F.one_hot(target, output.shape[1]).to(output.dtype).mean(dim=0)[target]
        weight = share**self.power
        return (F.cross_entropy(output, target, reduction="none") * weight).sum() / weight.sum()


class Attentive(Agreement):
    """The same, of a third tensor too."""

    def forward(self, output, target, attention=None, *, sample_weight=None):
        return super().forward(output, target)


class Unweighted(Agreement):
    """A loss of a batch that leaves out what every such loss takes."""

    def forward(self, output, target):
        return super().forward(output, target)


class Tempered(Loss):
    """Cross-entropy at another temperature, which is in no one's list."""

    papers = ("zhu2023ldr",)
    helps = ("noisy labels",)

    def per_sample(self, output, target):
        return F.cross_entropy(output / 2, target, reduction="none")


@pytest.fixture
def published(monkeypatch):
    """Have a class be public in ``lossworks.losses``."""

    def publish(part):
        monkeypatch.setattr(lw.losses, part.__name__, part, raising=False)
        monkeypatch.setattr(lw.losses, "__all__", [*lw.losses.__all__, part.__name__])
        catalog.parts.cache_clear()

    yield publish
    monkeypatch.undo()
    catalog.parts.cache_clear()


def test_findings_bring_in_what_helps_and_say_why(dataset):
    chosen = {candidate.name: candidate.why for candidate in choose_candidates(dataset, [NOISE], None)}
    assert next(iter(chosen)) == "CrossEntropyLoss"
    for_noise = [name for name, why in chosen.items() if "12 % of labels look wrong" in why]
    assert len(for_noise) >= 3
    for name in for_noise:
        assert any("noisy labels" in parts()[piece].helps for piece in name.split("+"))
    assert any("+" in name for name in for_noise), "weights stand beside the reference"


@pytest.mark.parametrize("task", list(tasks()))
def test_what_any_data_of_a_task_may_have_is_always_helped_with(task):
    target = np.arange(60) % 2 if task == "binary" else np.arange(60) % 7
    dataset = read((np.zeros((60, 2), dtype=np.float32) + np.arange(60)[:, None], target), task=task)
    chosen = choose_candidates(dataset, (), None)
    assert chosen[0].name == dataset.task.reference
    assert 2 <= len(chosen) <= 1 + len(dataset.task.troubles)
    helped = {term for candidate in chosen[1:] for part in candidate.parts for term in part.helps}
    assert set(dataset.task.troubles) <= helped


def test_however_much_is_found_the_number_of_candidates_is_bounded(dataset):
    everything = [Finding(term, term, {}, (term,), "notice") for term in catalog.HELPS]
    chosen = choose_candidates(dataset, everything, None)
    assert len(chosen) == MOST
    assert len(set(names(chosen))) == MOST


def test_each_rule_of_the_order_outweighs_all_that_come_after_it():
    shown_and_old, shown, old = ("song2023ict", "nelder1972glm"), ("song2023ict",), ("nelder1972glm", "song2023ict")

    def entry(name, papers, kind="classes", needs=(), helps=("noisy labels",)):
        part = type("Own", (Loss,), {"kind": kind, "needs": needs})
        return Entry(name, "loss", "losses", part, papers, helps)

    ordered = [
        entry("f", shown_and_old),
        entry("e", shown),
        entry("d", shown_and_old, needs=("num_classes",)),
        entry("c", shown_and_old, kind="binary"),
        entry("b", old),
        entry("a", shown_and_old, helps=("imbalance", "noisy labels")),
    ]
    places = [_place(tasks()["multiclass"], "noisy labels", one) for one in ordered]
    assert places == sorted(places)


def test_a_measured_claim_that_showed_comes_before_one_that_is_not_measured(dataset):
    real = read((np.arange(60.0)[:, None] + np.zeros((1, 2)), np.random.default_rng(0).normal(size=60)))
    chosen = names(choose_candidates(real, [TAILS], None))
    assert catalog.claims()["song2023ict"].shown
    assert "barron2019general" not in catalog.claims()
    assert chosen.index("PseudoHuberLoss") < chosen.index("GeneralRobustLoss")


def test_what_a_table_does_not_have_is_never_tried_by_itself(dataset):
    everything = [Finding(term, term, {}, (term,), "notice") for term in ("attacks", "worst case", "groups")]
    for chosen in (choose_candidates(dataset, [finding], None) for finding in everything):
        used = {part for candidate in chosen for part in candidate.parts}
        assert not [part for part in used if part.beside]
        assert not [part for part in used if getattr(part, "needs_group", False)], "the rows have no groups"
    assert lw.losses.MixingLoss.beside
    assert "MixingLoss" in names(choose_candidates(dataset, (), ["MixingLoss"]))


def test_groups_and_an_attack_bring_in_what_is_made_for_them():
    rng = np.random.default_rng(0)
    frame = {"a": rng.normal(size=90), "b": rng.normal(size=90), "g": ["u", "v", "w"] * 30, "y": ["n", "p"] * 45}
    dataset = read(frame, target="y", group="g")
    plain = names(choose_candidates(dataset, (), None))
    assert "CrossEntropyLoss+GroupDRO" in plain
    attack = Attack("linf", 0.25)
    attacked = choose_candidates(dataset, (), None, attack)
    aimed = [candidate for candidate in attacked if "PGD" in candidate.name]
    assert names(aimed)[0] == "CrossEntropyLoss+PGD"
    assert any(candidate.name.count("+") == 2 for candidate in aimed)
    for candidate in aimed:
        place = candidate.name.split("+").index("PGD")
        assert all(setting[place]["eps"] == 0.25 for setting in candidate.settings)


def test_a_loss_that_is_added_to_the_catalog_is_tried_by_itself(published):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 3))
    y = np.where((x[:, 0] > 0) ^ (rng.random(240) < 0.25), "yes", "no")
    published(Tempered)
    result = lw.compare((x, y), "y", folds=2, repeats=1, training=QUICK, model="linear")
    tried = {candidate.name: candidate.why for candidate in result.plan.candidates}
    assert any("noisy labels" in finding.helps for finding in result.findings)
    assert "noisy labels" in tried["Tempered"]
    assert "Tempered" in result.ranking["objective"].to_list()


# Losses that couple their batch


def test_a_loss_that_couples_its_batch_is_trained_by_name_by_choice_and_as_an_instance(published, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 3))
    y = np.where((x[:, 0] > 0) ^ (rng.random(240) < 0.25), "yes", "no")
    quick = {"folds": 2, "repeats": 1, "training": QUICK, "model": "linear"}
    published(Agreement)
    named = lw.compare((x, y), "y", objectives=["Agreement"], **quick)
    assert named.results.filter(pl.col("objective") == "Agreement")["setting_number"].n_unique() == 2
    assert named.results["accuracy"].is_finite().all()
    assert "Agreement" in [candidate.name for candidate in lw.compare((x, y), "y", **quick).plan.candidates]
    own = {"CrossEntropyLoss": Agreement(), "other": CrossEntropyLoss()}
    given = lw.compare((x, y), "y", objectives=own, out=tmp_path / "run", **quick)
    assert "objective.loss.kind.predict" in (tmp_path / "run" / "recipe.py").read_text()
    assert given.model().predict(x).shape == (240,)


def test_a_loss_that_takes_more_than_a_table_has_is_refused_by_name(published, dataset):
    published(Attentive)
    with pytest.raises(InputError, match="'Attentive' couples its batch and takes attention beside outputs"):
        choose_candidates(dataset, (), ["Attentive"])
    assert "Attentive" not in names(choose_candidates(dataset, [NOISE], None))
    taking_more = [
        entry.name
        for entry in parts().values()
        if entry.folder == "losses" and isinstance(entry.part, type) and issubclass(entry.part, BatchLoss)
    ]
    assert "PseudoLabelSelectionLoss" in taking_more
    for name in taking_more:
        if name != "Attentive":
            with pytest.raises(InputError, match=f"'{name}' couples its batch and takes"):
                choose_candidates(dataset, (), [name])


def test_a_loss_that_couples_its_batch_has_no_rows_to_weigh(published, dataset):
    published(Agreement)
    with pytest.raises(InputError, match="Agreement couples its batch, and has no rows to weigh"):
        choose_candidates(dataset, (), ["Agreement+ClassBalanced"])


# By name


def test_every_loss_of_the_catalog_but_those_of_pairs_can_be_a_candidate_for_some_task():
    for entry in parts().values():
        if isinstance(entry.part, type) and issubclass(entry.part, Loss) and entry.part.kind != lw.losses.BPRLoss.kind:
            fitting = [task for task in tasks().values() if task.fits(entry.part.kind)]
            assert fitting, entry.name
            assert 1 <= candidate_from_name(entry.name, "", fitting[0]).size <= 4


def test_a_user_s_own_objective_is_copied_for_each_replica(dataset):
    own = LDRLoss(5.0)
    candidates = choose_candidates(dataset, (), {"mine": own})
    assert [candidate.name for candidate in candidates] == ["CrossEntropyLoss", "mine"]
    objective = candidates[1].objective(0, {})
    assert objective.loss is not own
    assert objective.loss.lam == 5.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["LDRLos"], "did you mean 'LDRLoss'"),
        (["HuberLoss"], "is for real values, but the target is multiclass"),
        (["ClassBalanced"], "exactly one loss"),
        (["LDRLoss+CrossEntropyLoss"], "exactly one loss"),
        (["LDRLoss+ClassBalanced+UniformWeights"], "at most one weighting"),
        (["LDRLoss+SampleWeights"], "weights of your own"),
        ({"mine": torch.nn.CrossEntropyLoss()}, "must be a lossworks Loss or Objective"),
        ({"mine": LDRLoss}, "must be a lossworks Loss or Objective, as an object, got <class .*LDRLoss"),
        ([LDRLoss()], r"^objectives must be names of the catalog, as a list, or .*, got \[LDRLoss"),
        ("LDRLoss", r"^objectives must be names of the catalog, as a list, or .*, got 'LDRLoss'"),
        ({"mine": Unweighted()}, r"'mine': Unweighted.forward must take sample_weight="),
        ({"mine": HuberLoss()}, "is for real values"),
        ({OUTSIDE: LDRLoss()}, "is the name of the outside line"),
    ],
)
def test_wrong_objectives_are_named(dataset, given, message):
    with pytest.raises(InputError, match=message):
        choose_candidates(dataset, (), given)


def test_the_reference_is_not_added_twice(dataset):
    assert len(choose_candidates(dataset, (), ["CrossEntropyLoss"])) == 1
    assert len(choose_candidates(dataset, (), {"CrossEntropyLoss": CrossEntropyLoss()})) == 1


class _Own(BatchLoss):
    """A loss of a user, which answers what it is told."""

    kind = CLASSES

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, output, target, *, sample_weight=None):
        return self.answer(torch.nn.functional.cross_entropy(output, target, reduction="none"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda losses: losses, r"objectives\['mine'\] must give one number for a batch, got \(8,\) for 8 rows"),
        (lambda losses: 0.5, r"objectives\['mine'\] must give one number for a batch, got float"),
        (lambda losses: losses.detach().mean(), r"objectives\['mine'\] fails on 8 rows \(RuntimeError: .*grad"),
        (lambda losses: losses @ torch.ones(3), r"objectives\['mine'\] fails on 8 rows \(RuntimeError: "),
    ],
)
def test_an_objective_of_the_user_that_cannot_train_is_refused_before_anything_is_trained(dataset, answer, said):
    with pytest.raises(InputError, match=said) as caught:
        choose_candidates(dataset, (), {"mine": _Own(answer)})
    assert "\n" not in str(caught.value)
