"""The judgement of a comparison by tests on paired folds: which objective is better, and is the difference real.

The folds of a repeated cross-validation share training rows, so their differences are correlated, and a plain t-test
finds differences that do not exist. All tests here use the variance correction of Nadeau and Bengio.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from lossworks.checks import check_between, nearest
from lossworks.verdict.consensus import KEMENY_LIMIT, kemeny_consensus
from lossworks.verdict.paired import holm, paired_test

__all__ = ["Judgement", "Verdict", "by_group", "choose", "judge", "winner"]

Verdict = Literal["reference", "better", "equal", "worse", "unclear"]
ENOUGH = 0.95
"""The probability from which two objectives are called equal for practical purposes."""


class Judged(Protocol):
    """What :func:`judge` needs to know of a metric; a :class:`lossworks.metrics.Metric` has it."""

    @property
    def name(self) -> str:
        """The name of the column that holds the metric."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better."""

    @property
    def bounded01(self) -> bool:
        """Whether the metric lies in [0, 1]."""


@dataclass(frozen=True)
class Judgement:
    """The result of :func:`judge`.

    Attributes:
        ranking: One row per objective, best mean first: ``objective``, ``setting`` (chosen in most folds), ``role``
            (``reference``, ``candidate`` or ``outside``), the metric under its own name with ``low`` and ``high``;
            ``difference`` to the reference in the metric's unit with ``difference_low`` and ``difference_high``, ``p``,
            ``p_adjusted``, ``p_better``, ``p_equal``, ``p_worse``; ``folds`` (pairs compared), ``rank`` over all
            metrics, ``verdict``; then the means of the other metrics.
        differences: The paired differences behind the ranking, with columns ``objective``, ``fold``, ``repeat`` and
            ``difference``.
        metric: The metric that was judged.
        reference: The objective that the others were compared with.
        outside: The objective from outside, such as boosted trees, which is shown and tested but is no candidate.
        rope: The largest difference that counts as equal for practical purposes, in the metric's unit.
        alpha: The error rate of the tests.
        test_fraction: The share of rows in each test fold.
        rank_method: How ``rank`` was found, ``"kemeny"`` or ``"borda"``.
    """

    ranking: pl.DataFrame
    differences: pl.DataFrame
    metric: str
    reference: str
    outside: str | None
    rope: float
    alpha: float
    test_fraction: float
    rank_method: Literal["kemeny", "borda"]


def choose(results: pl.DataFrame) -> pl.DataFrame:
    """Mark the setting to test in each fold and repeat, in a new column ``chosen``: the best one on the inner rows.

    Args:
        results: One row for each trained model, with the columns ``objective``, ``setting_number``, ``fold``,
            ``repeat``, ``dropped`` (whether the training was stopped before its end, which rules the model out unless
            all were) and ``inner_score`` (larger is better). If scores are equal, the first setting is chosen; NaN and
            null are worse than any number.

    Returns:
        All rows in their given order, with the new column.
    """
    score = pl.col("inner_score").cast(pl.Float64).fill_null(-math.inf).fill_nan(-math.inf)
    numbered = results.with_row_index("_row").with_columns(_score=score)
    ordered = numbered.sort("dropped", "_score", "setting_number", descending=[False, True, False], maintain_order=True)
    first = ordered.unique(["objective", "fold", "repeat"], keep="first", maintain_order=True)["_row"]
    return numbered.with_columns(chosen=pl.col("_row").is_in(first.implode())).drop("_row", "_score")


def judge(
    scores: pl.DataFrame,
    *,
    metric: Judged,
    reference: str,
    test_fraction: float,
    ranked: Sequence[Judged] = (),
    shown: Sequence[str] = (),
    rope: float | None = None,
    outside: str | None = None,
    alpha: float = 0.05,
) -> Judgement:
    """Compare every objective with the reference, fold by fold.

    The verdict on an objective is ``equal`` if the difference is within ``rope`` with a probability of at least 0.95,
    whatever the p-value. Otherwise it is ``better`` or ``worse`` if the p-value, adjusted by Holm's method for the
    number of candidates, is below ``alpha``. In all other cases it is ``unclear``, also for an objective with a single
    fold, and for one that failed (its score is NaN in a fold in which the reference has a number).

    Args:
        scores: One row for each objective, fold and repeat, of the setting that :func:`choose` chose, with the columns
            ``objective``, ``setting``, ``fold``, ``repeat``, and one for each metric. A fold that is missing for an
            objective or for the reference, or in which the reference's metric is undefined, is left out of that
            objective's differences.
        metric: The metric to judge.
        reference: The objective that the others are compared with.
        test_fraction: The share of the rows in each test fold, in (0, 1).
        ranked: The metrics whose consensus is the rank, by default ``metric`` alone; those that the table lacks are
            ignored.
        shown: Further columns whose means are shown but do not count for the rank; those that the table lacks are
            ignored.
        rope: Half the region of practical equivalence, in the metric's unit; by default 0.01 for metrics in [0, 1], and
            1 % of the reference's mean for others.
        outside: An objective that is shown and tested but is no candidate; the table need not have it.
        alpha: The error rate, in (0, 1).

    Raises:
        ValueError: a column or the reference is missing; an objective has a fold twice; ``alpha`` is out of range.
    """
    check_between("alpha", alpha, 0, 1, open_low=True, open_high=True)
    _check(scores, metric.name, reference)
    judged, ranked = metric, [one for one in ranked or [metric] if one.name in scores.columns]
    columns = dict.fromkeys(name for name in [*(one.name for one in ranked), *shown] if name in scores.columns)
    others = [name for name in columns if name != metric.name]
    scores = scores.sort("fold", "repeat", maintain_order=True)
    if rope is None:
        level = _mean(scores.filter(pl.col("objective") == reference)[metric.name])
        rope = 0.01 if judged.bounded01 else 0.01 * abs(level or 0.0)
    systems = scores["objective"].unique(maintain_order=True).to_list()
    differences = _differences(scores, metric.name, reference)
    rows = []
    for name in systems:
        paired = differences.filter(pl.col("objective") == name)["difference"].to_numpy()
        own = scores.filter(pl.col("objective") == name)
        rows.append(
            {"objective": name, "setting": _most_frequent(own["setting"])}
            | {"role": "reference" if name == reference else "outside" if name == outside else "candidate"}
            | _mean_columns(own[metric.name], metric.name, test_fraction, 1 - alpha)
            | _difference_columns(paired, judged.higher_is_better, test_fraction, rope, 1 - alpha)
            | {other: _mean(own[other]) for other in others}
        )
    candidates = [row for row in rows if row["role"] == "candidate"]
    for row, p in zip(candidates, holm([row["p"] for row in candidates]), strict=True):
        row["p_adjusted"] = p
    for row in rows:
        row["verdict"] = _verdict(row, judged.higher_is_better, alpha)
        if row["role"] == "reference":
            row |= dict.fromkeys(("p", "p_adjusted", "p_better", "p_equal", "p_worse"))
    sign = -1 if judged.higher_is_better else 1
    # Of objectives with equal means, the reference comes first.
    rows.sort(key=lambda row: (row[metric.name] is None, sign * (row[metric.name] or 0.0), row["role"] != "reference"))
    method = _rank(rows, ranked)
    return Judgement(
        ranking=_frame(rows, metric.name),
        differences=differences,
        metric=metric.name,
        reference=reference,
        outside=outside,
        rope=rope,
        alpha=alpha,
        test_fraction=test_fraction,
        rank_method=method,
    )


def by_group(
    scores: pl.DataFrame, names: Sequence[str], *, reference: str, test_fraction: float, alpha: float
) -> pl.DataFrame:
    """The metric of each group of rows, and its difference to the reference's on the same rows, fold by fold.

    The intervals are computed as in :func:`judge`, for each group by itself. So among many groups, some differences
    look real but are not.

    Args:
        scores: A table as for :func:`judge`, with a column ``groups`` that lists the metric of each group, null if a
            fold has no rows of the group.
        names: The groups' names.
        reference: The objective that the others are compared with.
        test_fraction: The share of the rows in each test fold, in (0, 1).
        alpha: The error rate, in (0, 1).

    Returns:
        One row for each objective and group, with the columns ``objective``, ``group``, ``mean`` of the metric with
        ``low`` and ``high``, ``difference`` with ``difference_low`` and ``difference_high``, and ``folds`` (the number
        in which the group has rows). A number that is undefined, or of an objective that failed, is null.
    """
    long = scores.select("objective", "fold", "repeat", value="groups").with_columns(
        group=pl.lit(list(names), dtype=pl.List(pl.String))
    )
    long = long.explode("value", "group").drop_nulls("value")
    rows = []
    for name in names:
        own = long.filter(pl.col("group") == name)
        differences = _differences(own, "value", reference)
        for objective in scores["objective"].unique(maintain_order=True).to_list():
            values = own.filter(pl.col("objective") == objective)["value"]
            paired = differences.filter(pl.col("objective") == objective)["difference"].to_numpy()
            if objective == reference:
                paired = paired[:0]
            found = _difference_columns(paired, True, test_fraction, 0.0, 1 - alpha)
            rows.append(
                {"objective": objective, "group": name}
                | _mean_columns(values, "mean", test_fraction, 1 - alpha)
                | {key: found[key] for key in ("difference", "difference_low", "difference_high")}
                | {"folds": len(values)}
            )
    numbers = ("mean", "low", "high", "difference", "difference_low", "difference_high")
    kinds = {"objective": pl.String, "group": pl.String} | dict.fromkeys(numbers, pl.Float64) | {"folds": pl.Int64}
    return pl.DataFrame(rows, schema=kinds)


def winner(ranking: pl.DataFrame) -> str:
    """The best candidate whose verdict is ``better``, or the reference if there is none."""
    better = ranking.filter((pl.col("role") == "candidate") & (pl.col("verdict") == "better"))
    chosen = better if len(better) else ranking.filter(pl.col("role") == "reference")
    return str(chosen["objective"][0])


def _check(scores: pl.DataFrame, metric: str, reference: str) -> None:
    for column in ("objective", "setting", "fold", "repeat", metric):
        if column not in scores.columns:
            raise ValueError(f"scores must have a column {column!r}, got {', '.join(scores.columns)}")
    systems = scores["objective"].unique(maintain_order=True).to_list()
    if reference not in systems:
        raise ValueError(
            f"reference must be one of {', '.join(systems)}, got {reference!r}{nearest(reference, systems)}"
        )
    twice = scores.filter(scores.select("objective", "fold", "repeat").is_duplicated())
    if len(twice):
        objective, fold, repeat = twice.select("objective", "fold", "repeat").row(0)
        raise ValueError(
            f"scores must have one row an objective, fold and repeat, got {objective!r} twice in fold {fold}, "
            f"repeat {repeat}"
        )


def _differences(scores: pl.DataFrame, metric: str, reference: str) -> pl.DataFrame:
    """Each objective's score minus the reference's, on the folds that both have; NaN in folds where it failed."""
    own = scores.filter((pl.col("objective") == reference) & pl.col(metric).is_finite())
    pairs = scores.join(
        own.select("fold", "repeat", pl.col(metric).alias("_reference")), on=["fold", "repeat"], maintain_order="left"
    )
    return pairs.select(
        "objective", "fold", "repeat", difference=pl.col(metric).cast(pl.Float64) - pl.col("_reference")
    )


def _mean(column: pl.Series) -> float | None:
    """The mean over the folds in which the number is defined."""
    values = column.cast(pl.Float64).drop_nulls().drop_nans()
    return float(values.to_numpy().mean()) if len(values) else None


def _mean_columns(column: pl.Series, metric: str, test_fraction: float, level: float) -> dict[str, Any]:
    values = column.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    if not len(values) or not np.isfinite(values).all():
        return {metric: None, "low": None, "high": None}
    found = paired_test(values, test_fraction=test_fraction, level=level)
    return {metric: found.mean, "low": found.low, "high": found.high}


def _difference_columns(
    values: npt.NDArray[np.float64], higher_is_better: bool, test_fraction: float, rope: float, level: float
) -> dict[str, Any]:
    usable = len(values) > 0 and bool(np.isfinite(values).all())
    found = paired_test(values, test_fraction=test_fraction, rope=rope, level=level) if usable else None
    better, worse = ("above", "below") if higher_is_better else ("below", "above")
    names = {"difference": "mean", "difference_low": "low", "difference_high": "high", "p": "p", "p_adjusted": "p"}
    names |= {"p_better": better, "p_equal": "within", "p_worse": worse}
    return {column: getattr(found, name, None) for column, name in names.items()} | {"folds": len(values)}


def _verdict(row: Mapping[str, Any], higher_is_better: bool, alpha: float) -> Verdict:
    if row["role"] == "reference":
        return "reference"
    if row["p_adjusted"] is None:
        return "unclear"
    if row["p_equal"] >= ENOUGH:
        return "equal"
    if row["p_adjusted"] < alpha:
        return "better" if (row["difference"] > 0) == higher_is_better else "worse"
    return "unclear"


def _most_frequent(settings: pl.Series) -> str:
    """The setting that was chosen in most folds, the first one if there is a tie."""
    counts = settings.value_counts(sort=False, name="_count")
    order = settings.unique(maintain_order=True).to_frame().join(counts, on=settings.name, maintain_order="left")
    return str(order[settings.name][int(order["_count"].arg_max() or 0)])


def _rank(rows: list[dict[str, Any]], ranked: Sequence[Judged]) -> Literal["kemeny", "borda"]:
    """Give each row its rank in the consensus of these metrics; rows that are equal in all of them share a rank."""
    worst = -math.inf
    table = np.array(
        [
            [worst if row[m.name] is None else row[m.name] * (1 if m.higher_is_better else -1) for m in ranked]
            for row in rows
        ]
    )
    method: Literal["exact", "borda"] = "exact" if len(rows) <= KEMENY_LIMIT else "borda"
    order = kemeny_consensus(table, method)
    rank = 0
    for place, system in enumerate(order):
        if not place or not np.array_equal(table[system], table[order[place - 1]]):
            rank = place + 1
        rows[system]["rank"] = rank
    return "kemeny" if method == "exact" else "borda"


def _frame(rows: list[dict[str, Any]], metric: str) -> pl.DataFrame:
    text = ("objective", "setting", "role", "verdict")
    leading = ["objective", "setting", "role", metric, "low", "high", "difference", "difference_low", "difference_high"]
    leading += ["p", "p_adjusted", "p_better", "p_equal", "p_worse", "folds", "rank", "verdict"]
    names = leading + [name for name in rows[0] if name not in leading]
    kinds = {
        name: pl.String if name in text else pl.Int64 if name in ("folds", "rank") else pl.Float64 for name in names
    }
    return pl.DataFrame(rows, schema=kinds)
