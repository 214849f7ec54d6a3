"""One ranking of systems out of many: by counts of victories (Borda) or by fewest disagreements (Kemeny)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from lossworks.checks import check_bool, check_choice, check_sequence
from lossworks.metrics.arrays import Array, Floats, as_floats
from lossworks.roles import cite

__all__ = ["KEMENY_LIMIT", "borda_ranking", "kemeny_consensus", "two_level_borda"]

KEMENY_LIMIT = 16
"""The most systems for which the exact Kemeny consensus is computed (2^16 subsets)."""


@cite("colombo2022best", helps=("ranking systems",))
def borda_ranking(
    scores: Real[Array, "systems tasks"], higher_is_better: bool = True, ties: str = "average"
) -> tuple[Int[np.ndarray, " systems"], Float[np.ndarray, " systems"]]:
    r"""Borda count: rank systems by how many others they beat, summed over tasks; a task's scale does not matter.

    .. math::
        B_s = \sum_t \#\{ r : x_{rt} < x_{st} \} + \tfrac12 \#\{ r \ne s : x_{rt} = x_{st} \}

    The authors' code breaks ties by the order in which systems are listed; here each of two systems that tie gets half,
    which keeps the result independent of that order.

    Args:
        scores: ``(S, T)``, one row a system and one column a task.
        higher_is_better: Whether larger scores win.
        ties: ``"average"`` as above, ``"min"`` (a tie beats nobody), or ``"ordinal"`` (the system listed later wins).

    Returns:
        The systems' row numbers, best first (equal counts in the order listed), ``(S,)``; and the counts, ``(S,)``.

    Raises:
        ValueError: ``scores`` not ``(S, T)`` with at least one of each, NaN, an unknown ``ties``.

    Use it when scores on several tasks or metrics are to give one ranking. Averaging scores instead lets the task with
    the widest scale decide.

    Papers: colombo2022best

    >>> borda_ranking(np.array([[0.9, 70.0], [0.8, 90.0], [0.7, 60.0]]))
    (array([0, 1, 2]), array([3., 3., 0.]))
    """
    return _borda("scores", scores, higher_is_better, ties)


@cite("colombo2022best", helps=("ranking systems",))
def two_level_borda(
    instance_scores: Sequence[Real[Array, "systems instances"]], higher_is_better: bool = True, ties: str = "average"
) -> tuple[Int[np.ndarray, " systems"], Float[np.ndarray, " systems"]]:
    r"""Borda over instances inside each task, then Borda over tasks, so that each task counts once whatever its size.

    .. math::
        B_s = \mathrm{Borda}\bigl( [\, \mathrm{Borda}(X_1), \dots, \mathrm{Borda}(X_T) \,] \bigr)_s

    Args:
        instance_scores: One ``(S, n_t)`` a task: each system's score on each instance.
        higher_is_better: Whether larger scores win.
        ties: As in :func:`borda_ranking`.

    Returns:
        As :func:`borda_ranking`.

    Raises:
        ValueError: no task, tasks with different numbers of systems, NaN.

    Use it when the scores of single rows are at hand; otherwise use :func:`borda_ranking` on the tasks' scores.

    Papers: colombo2022best

    >>> two_level_borda([np.array([[1.0, 0.9], [0.2, 0.1]]), np.array([[5.0], [7.0]]), np.array([[3.0], [2.0]])])
    (array([0, 1]), array([2., 1.]))
    """
    check_sequence("instance_scores", instance_scores)
    counts = [_borda("instance_scores", scores, higher_is_better, ties)[1] for scores in instance_scores]
    if not counts or len({len(count) for count in counts}) > 1:
        got = ", ".join(str(len(count)) for count in counts) or "no task"
        raise ValueError(f"instance_scores must hold one array (S, n_t) a task with the same S in each, got {got}")
    return borda_ranking(np.stack(counts, axis=1), ties=ties)


@cite("colombo2022best", helps=("ranking systems",))
def kemeny_consensus(
    scores: Real[Array, "systems tasks"], method: str = "exact", higher_is_better: bool = True
) -> Int[np.ndarray, " systems"]:
    r"""Kemeny consensus: the ranking that contradicts the tasks' rankings in the fewest pairs of systems.

    .. math::
        \arg\min_\pi \sum_t d_{\text{Kendall}}(\pi, \pi_t)

    ``"exact"`` is dynamic programming over the set of systems that are already placed, :math:`O(2^S S)`, so a Condorcet
    winner is first. ``"borda"`` is a fast approximation, within a factor of 5. Of several optimal rankings the result
    is the first in the order in which the systems are listed. A tie on a task contradicts nothing.

    Args:
        scores: ``(S, T)``, one row a system and one column a task.
        method: ``"exact"`` (up to 16 systems) or ``"borda"``.
        higher_is_better: Whether larger scores win.

    Returns:
        The systems' row numbers, best first, ``(S,)``.

    Raises:
        ValueError: as :func:`borda_ranking`; more than 16 systems with ``"exact"``.

    Use it when systems are few and the order of each pair matters; for many systems use Borda.

    Papers: colombo2022best

    >>> kemeny_consensus(np.array([[3, 3, 1], [2, 2, 3], [1, 1, 2]]))
    array([0, 1, 2])
    """
    if check_choice("method", method, ("exact", "borda")) == "borda":
        return borda_ranking(scores, higher_is_better)[0]
    table = _table("scores", scores, higher_is_better)
    systems = len(table)
    if systems > KEMENY_LIMIT:
        raise ValueError(
            f"scores must have at most {KEMENY_LIMIT} systems for method='exact', got {systems}; use 'borda'"
        )
    wins = (table[:, None] > table[None]).sum(axis=2)  # [i, j]: tasks on which i beats j
    subsets = np.arange(1 << systems)
    # against[j, A]: contradicted pairs when j is placed ahead of all of A.
    against = np.zeros((systems, 1 << systems), dtype=np.int64)
    for other in range(systems):
        half = 1 << other
        against[:, half : 2 * half] = against[:, :half] + wins[other][:, None]
    cheapest = np.full(1 << systems, np.iinfo(np.int64).max)
    cheapest[0] = 0
    sizes = np.bitwise_count(subsets)
    for size in range(1, systems + 1):
        chosen = subsets[sizes == size]
        for first in range(systems):
            whole = chosen[chosen >> first & 1 == 1]
            rest = whole ^ (1 << first)
            cheapest[whole] = np.minimum(cheapest[whole], cheapest[rest] + against[first, rest])
    order, left = [], len(subsets) - 1
    while left:
        for first in range(systems):
            rest = left ^ (1 << first)
            if left >> first & 1 and cheapest[rest] + against[first, rest] == cheapest[left]:
                order.append(first)
                left = rest
                break
    return np.array(order)


def _borda(
    name: str, scores: Array, higher_is_better: bool, ties: str
) -> tuple[Int[np.ndarray, " systems"], Float[np.ndarray, " systems"]]:
    counts = _beaten(_table(name, scores, higher_is_better), ties).sum(axis=1)
    return np.argsort(-counts, kind="stable"), counts


def _table(name: str, scores: Array, higher_is_better: bool) -> Floats:
    check_bool("higher_is_better", higher_is_better)
    table = as_floats(name, scores)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name} must have shape (S, T), one row a system and one column a task, got {table.shape}")
    return table if higher_is_better else -table


def _beaten(table: Floats, ties: str) -> Floats:
    """How many systems each system beats on each task, ``(S, T)``."""
    check_choice("ties", ties, ("average", "min", "ordinal"))
    if ties == "ordinal":
        return table.argsort(axis=0, kind="stable").argsort(axis=0).astype(np.float64)
    ordered = np.sort(table, axis=0)
    beaten = np.empty_like(table)
    for task, column in enumerate(ordered.T):
        beaten[:, task] = np.searchsorted(column, table[:, task], side="left")
        if ties == "average":
            beaten[:, task] += (np.searchsorted(column, table[:, task], side="right") - beaten[:, task] - 1) / 2
    return beaten
