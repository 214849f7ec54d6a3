import numpy as np
import pytest
import torch

from lossworks.catalog import parts
from lossworks.checks import InputError
from lossworks.comparison.findings import Finding
from lossworks.comparison.plan import (
    ALWAYS,
    GROUP_SIZE,
    INNER_MOST,
    PREFERRED,
    candidate_from_name,
    choose_candidates,
    inner_split,
    jobs_of,
    make_plan,
    make_splits,
    training_facts,
)
from lossworks.comparison.read.dataset import read
from lossworks.losses import CrossEntropyLoss, HuberLoss, LDRLoss
from lossworks.roles import PAIRS, Loss


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return read((rng.normal(size=(120, 3)).astype(np.float32), np.repeat(["a", "b", "c"], [60, 40, 20])))


@pytest.fixture
def plan(dataset):
    candidates = choose_candidates(dataset, (), ["LDRLoss", "CrossEntropyLoss+ClassBalanced"])
    return make_plan(dataset, candidates, metric="accuracy", folds=4, repeats=2, seed=0)


def test_every_row_is_tested_once_a_repeat_and_never_seen_by_its_fold(plan):
    for repeat in range(2):
        splits = [split for split in plan.splits if split.repeat == repeat]
        assert sorted(np.concatenate([split.test for split in splits])) == list(range(120))
    for split in plan.splits:
        together = np.concatenate([split.fit, split.inner, split.test])
        assert sorted(together) == list(range(120))


def test_folds_and_inner_rows_keep_the_classes_shares(plan, dataset):
    for split in plan.splits:
        for rows in (split.test, split.inner):
            shares = np.bincount(dataset.target[rows], minlength=3) / len(rows)
            np.testing.assert_allclose(shares, [0.5, 1 / 3, 1 / 6], atol=0.06)


def test_the_same_seed_gives_the_same_plan_and_another_another(dataset):
    candidates = choose_candidates(dataset, (), None)
    make = lambda seed: make_plan(dataset, candidates, metric="accuracy", folds=3, repeats=1, seed=seed)  # noqa: E731
    data = [np.zeros((120, 2)), dataset.target]
    assert make(1).fingerprint(data, "mlp") == make(1).fingerprint(data, "mlp")
    assert make(1).fingerprint(data, "mlp") != make(2).fingerprint(data, "mlp")
    assert make(1).fingerprint(data, "mlp") != make(1).fingerprint(data, "linear")
    assert make(1).fingerprint(data, "mlp") != make(1).fingerprint([np.ones((120, 2)), dataset.target], "mlp")
    assert make(1).groups == make(1).groups


def test_groups_hold_every_replica_once_and_never_part_a_contest(plan):
    for number, candidate in enumerate(plan.candidates):
        groups = [group for group in plan.groups if group.candidate == number]
        replicas = [(r.setting, r.split) for group in groups for r in group.replicas]
        assert sorted(replicas) == sorted((s, f) for s in range(candidate.size) for f in range(8))
        assert all(len(group.replicas) <= GROUP_SIZE for group in groups)
        for group in groups:
            for split in {r.split for r in group.replicas}:
                alike = {candidate.stacks(r.setting) for r in group.replicas}
                assert len(alike) == 1
                assert sum(r.split == split for r in group.replicas) >= 1


def test_seeds_differ_between_objectives_settings_and_folds(plan):
    seeds = [replica.seed for group in plan.groups for replica in group.replicas]
    assert len(set(seeds)) == len(seeds)


def test_a_fold_s_facts_come_from_its_own_training_rows(dataset):
    facts = training_facts(dataset.target, np.arange(70), 3)
    assert facts["class_counts"].tolist() == [60, 10, 0]
    assert facts["num_samples"] == 120


def test_real_bounds_hold_the_standardised_training_rows():
    values = np.random.default_rng(0).normal(50, 5, size=200)
    facts = training_facts(values, np.arange(100), 0)
    standardised = (values[:100] - values[:100].mean()) / values[:100].std()
    assert facts["v_min"] <= standardised.min()
    assert facts["v_max"] >= standardised.max()


def test_float_settings_stack_as_tensors(plan, dataset):
    group = next(g for g in plan.groups if plan.candidates[g.candidate].name == "LDRLoss")
    lams = [job.objective.loss.lam for job in jobs_of(plan, group, dataset)]
    assert all(isinstance(lam, torch.Tensor) and lam.ndim == 0 for lam in lams)
    assert len({float(lam) for lam in lams}) == len(LDRLoss.settings)


def test_findings_bring_in_what_helps_and_say_why(dataset):
    noise = Finding("label_noise", "12 % of labels look wrong", {}, ("noisy labels",), "notice")
    chosen = {candidate.name: candidate.why for candidate in choose_candidates(dataset, [noise], None)}
    assert set(PREFERRED["noisy labels"]) <= set(chosen)
    assert "12 % of labels look wrong" in chosen[PREFERRED["noisy labels"][0]]
    assert next(iter(chosen)) == "CrossEntropyLoss"


def test_what_is_preferred_for_a_trouble_says_that_it_helps_with_it():
    for term, names in PREFERRED.items():
        for name in names:
            assert term in {t for piece in name.split("+") for t in parts()[piece].helps}, (term, name)


@pytest.mark.parametrize("task", ["binary", "multiclass", "real"])
def test_what_is_always_tried_fits_the_task(task):
    for name in ALWAYS[task]:
        assert candidate_from_name(name, "", task).size >= 1


def test_every_loss_of_the_catalog_but_those_of_pairs_can_be_a_candidate_for_some_task():
    for entry in parts().values():
        if isinstance(entry.part, type) and issubclass(entry.part, Loss) and entry.part.kind != PAIRS:
            task = {"classes": "multiclass", "binary": "binary", "real": "real"}[entry.part.kind.name]
            assert 1 <= candidate_from_name(entry.name, "", task).size <= 4


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
        ({"mine": HuberLoss()}, "is for real values"),
    ],
)
def test_wrong_objectives_are_named(dataset, given, message):
    with pytest.raises(InputError, match=message):
        choose_candidates(dataset, (), given)


def test_the_reference_is_not_added_twice(dataset):
    assert len(choose_candidates(dataset, (), ["CrossEntropyLoss"])) == 1
    assert len(choose_candidates(dataset, (), {"CrossEntropyLoss": CrossEntropyLoss()})) == 1


def test_inner_rows_are_few_in_large_data():
    fit, inner = inner_split(np.arange(200_000), np.arange(200_000) % 2, True, 0)
    assert len(inner) == INNER_MOST
    assert len(fit) + len(inner) == 200_000


def test_a_class_with_one_training_row_still_splits():
    target = np.array([0] * 20 + [1])
    fit, inner = inner_split(np.arange(21), target, True, 0)
    assert len(fit) + len(inner) == 21


def test_real_targets_are_not_stratified():
    splits = make_splits(np.linspace(0, 1, 30), "real", 3, 1, 0)
    assert all(len(split.test) == 10 for split in splits)
