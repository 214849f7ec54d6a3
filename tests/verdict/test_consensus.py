"""Rank aggregation against brute force over all permutations, and the properties that define it."""

from itertools import combinations, permutations

import numpy as np
import pytest

from lossworks.verdict import KEMENY_LIMIT, borda_ranking, kemeny_consensus, two_level_borda


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def disagreement(order, scores) -> int:
    return sum(int((scores[later] > scores[earlier]).sum()) for earlier, later in combinations(order, 2))


def test_counts_are_the_systems_beaten_with_half_for_ties(rng):
    scores = rng.integers(0, 4, (6, 9)).astype(float)
    below = (scores[:, None] > scores[None]).sum(axis=(1, 2))
    tied = (scores[:, None] == scores[None]).sum(axis=(1, 2)) - 9
    assert borda_ranking(scores)[1].tolist() == (below + tied / 2).tolist()
    assert borda_ranking(scores, ties="min")[1].tolist() == below.tolist()


@pytest.mark.parametrize("ties", ["average", "ordinal"])
def test_counts_sum_to_all_pairs_of_all_tasks(rng, ties):
    assert borda_ranking(rng.integers(0, 3, (7, 5)), ties=ties)[1].sum() == 5 * 7 * 6 / 2


def test_a_task_may_change_its_scale(rng):
    scores = rng.normal(size=(6, 4))
    changed = scores.copy()
    changed[:, 1], changed[:, 2] = np.exp(5 * changed[:, 1]), 1000 * changed[:, 2] - 7
    assert borda_ranking(scores)[0].tolist() == borda_ranking(changed)[0].tolist()
    assert kemeny_consensus(scores).tolist() == kemeny_consensus(changed).tolist()
    assert (-scores.mean(axis=1)).argsort().tolist() != (-changed.mean(axis=1)).argsort().tolist()


def test_names_of_systems_and_order_of_tasks_do_not_matter(rng):
    scores, shuffled = rng.normal(size=(6, 7)), rng.permutation(6)
    for rank in (lambda s: borda_ranking(s)[0], kemeny_consensus):
        order = rank(scores)
        assert rank(scores[:, ::-1]).tolist() == order.tolist()
        if rank is kemeny_consensus:
            assert disagreement(shuffled[rank(scores[shuffled])], scores) == disagreement(order, scores)
    assert borda_ranking(scores[shuffled])[1].tolist() == borda_ranking(scores)[1][shuffled].tolist()


def test_identical_rankings_are_returned_as_they_are(rng):
    order = rng.permutation(8)
    scores = np.empty((8, 3))
    scores[order] = np.arange(8, 0, -1)[:, None] * np.array([1.0, 10.0, 0.1])
    assert borda_ranking(scores)[0].tolist() == kemeny_consensus(scores).tolist() == order.tolist()
    assert borda_ranking(-scores, higher_is_better=False)[0].tolist() == order.tolist()
    assert kemeny_consensus(-scores, higher_is_better=False).tolist() == order.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_kemeny_is_the_first_best_of_all_permutations(seed):
    scores = np.random.default_rng(seed).integers(0, 4, (5, 6)).astype(float)
    best = min(permutations(range(5)), key=lambda order: (disagreement(order, scores), order))
    assert tuple(kemeny_consensus(scores)) == best


def test_kemeny_never_disagrees_more_than_borda(rng):
    for _ in range(20):
        scores = rng.normal(size=(9, 5))
        exact, borda = (disagreement(kemeny_consensus(scores, method), scores) for method in ("exact", "borda"))
        assert exact <= borda <= 5 * exact


def test_kemeny_puts_a_condorcet_winner_first_where_borda_does_not():
    # Three of five tasks put a ahead of b; the other two put it last.
    scores = np.array([[3, 3, 3, 1, 1], [2, 2, 2, 3, 3], [1, 1, 1, 2, 2]])
    assert kemeny_consensus(scores)[0] == 0
    assert borda_ranking(scores)[0][0] == 1


def test_two_levels_count_each_task_once(rng):
    large = np.array([[1.0], [0.0]]) + rng.normal(size=(2, 500)) * 0.01
    small = [np.array([[0.0], [1.0]])] * 2
    pooled = np.concatenate([large, *small], axis=1)
    assert borda_ranking(pooled)[0][0] == 0
    order, counts = two_level_borda([large, *small])
    assert order.tolist() == [1, 0]
    assert counts.tolist() == [1, 2]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"scores must have shape \(S, T\).*, got \(3,\)"):
        borda_ranking(np.zeros(3))
    with pytest.raises(ValueError, match="scores must have no NaN, got 1 of 4"):
        borda_ranking(np.array([[1, np.nan], [0, 1]]))
    with pytest.raises(
        ValueError, match="ties must be one of 'average', 'min', 'ordinal', got 'averag'; did you mean 'average'"
    ):
        borda_ranking(np.zeros((2, 2)), ties="averag")
    with pytest.raises(ValueError, match="at most 16 systems for method='exact', got 17; use 'borda'"):
        kemeny_consensus(np.zeros((KEMENY_LIMIT + 1, 2)))
    with pytest.raises(ValueError, match="the same S in each, got 2, 3"):
        two_level_borda([np.zeros((2, 2)), np.zeros((3, 2))])
    with pytest.raises(ValueError, match="got no task"):
        two_level_borda([])
