import numpy as np
import pytest
import torch

from lossworks.comparison.candidates import choose_candidates
from lossworks.comparison.plan import GROUP_SIZE, default_training, jobs_of, make_plan
from lossworks.comparison.read.dataset import read
from lossworks.losses import LDRLoss
from lossworks.metrics import METRICS


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return read((rng.normal(size=(120, 3)).astype(np.float32), np.repeat(["a", "b", "c"], [60, 40, 20])))


@pytest.fixture
def plan(dataset):
    candidates = choose_candidates(dataset, (), ["LDRLoss", "CrossEntropyLoss+ClassBalanced"])
    return make_plan(dataset, candidates, metric=METRICS["accuracy"], folds=4, repeats=2, seed=0)


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
    make = lambda seed: make_plan(dataset, candidates, metric=METRICS["accuracy"], folds=3, repeats=1, seed=seed)  # noqa: E731
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


def test_float_settings_stack_as_tensors(plan, dataset):
    group = next(g for g in plan.groups if plan.candidates[g.candidate].name == "LDRLoss")
    lams = [job.objective.loss.lam for job in jobs_of(plan, group, dataset)]
    assert all(isinstance(lam, torch.Tensor) and lam.ndim == 0 for lam in lams)
    assert len({float(lam) for lam in lams}) == len(LDRLoss.settings)


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "eval_every"),
    [
        (100, 64, 400, 10),
        (3_999, 64, 2_499, 62),
        (4_000, 128, 1_250, 31),
        (19_999, 128, 3_000, 75),
        (20_000, 256, 3_000, 75),
        (199_999, 256, 3_000, 75),
        (200_000, 512, 3_000, 75),
    ],
)
def test_larger_tables_get_larger_batches_and_forty_passes_within_bounds(rows, batch, steps, eval_every):
    training = default_training(rows)
    assert (training.batch_size, training.max_steps, training.eval_every) == (batch, steps, eval_every)
    assert (training.patience, training.lr) == (10, 3e-3)
