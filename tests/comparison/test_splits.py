import numpy as np

from lossworks.comparison.splits import INNER_MOST, inner_split, make_splits


def test_inner_rows_are_few_in_large_data():
    fit, inner = inner_split(np.arange(200_000), np.arange(200_000) % 2, 0)
    assert len(inner) == INNER_MOST
    assert len(fit) + len(inner) == 200_000


def test_a_class_with_one_training_row_still_splits():
    fit, inner = inner_split(np.arange(21), np.array([0] * 20 + [1]), 0)
    assert len(fit) + len(inner) == 21


def test_rows_without_strata_are_in_folds_of_one_size():
    splits = make_splits(30, None, 3, 1, 0)
    assert all(len(split.test) == 10 for split in splits)


def test_every_stratum_has_its_share_of_each_fold():
    strata = np.repeat([0, 1], [40, 20])
    for split in make_splits(60, strata, 4, 2, 0):
        assert np.bincount(strata[split.test]).tolist() == [10, 5]
        assert sorted(np.concatenate([split.fit, split.inner, split.test])) == list(range(60))
