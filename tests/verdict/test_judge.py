"""The judge against scipy's own t, its error rate on correlated folds, and its verdicts case by case."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from lossworks.metrics import METRICS
from lossworks.verdict import holm, paired_test
from lossworks.verdict.judge import by_group, choose, judge, winner

FRACTION = 0.2


def table(metrics: dict[str, dict[str, list[float]]], folds: int = 5) -> pl.DataFrame:
    """Scores by metric and objective, one a fold and repeat in this order."""
    rows = [
        {"objective": name, "setting": "default", "fold": i % folds, "repeat": i // folds}
        | {metric: by_objective[name][i] for metric, by_objective in metrics.items()}
        for name, values in next(iter(metrics.values())).items()
        for i in range(len(values))
    ]
    return pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=0)


def verdicts(judgement) -> dict[str, str]:
    return dict(judgement.ranking.select("objective", "verdict").iter_rows())


@pytest.fixture
def base():
    return np.random.default_rng(0).normal(0.8, 0.02, 10)


def test_the_t_test_is_scipys_on_the_corrected_scale(base):
    d = base - 0.79
    found = paired_test(d, test_fraction=FRACTION, rope=0.01)
    scale = d.std(ddof=1) * math.sqrt(1 / 10 + FRACTION / (1 - FRACTION))
    student = stats.t(df=9, loc=d.mean(), scale=scale)
    assert found.mean == d.mean()
    assert (found.low, found.high) == pytest.approx(student.interval(0.95))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / scale, 9))
    assert (found.above, found.below) == pytest.approx((student.sf(0.01), student.cdf(-0.01)))
    assert found.above + found.within + found.below == pytest.approx(1)


def test_without_shared_rows_it_is_the_plain_t_test(base):
    d = base - 0.79
    assert paired_test(d, test_fraction=1e-12).p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def test_values_of_any_size_are_tested_alike():
    values = [1.0, 2.0, 4.0, 3.0]
    wanted = paired_test(values, test_fraction=0.2)
    for size in (2.0**1000, 2.0**-1000):
        found = paired_test([size * value for value in values], test_fraction=0.2)
        assert (found.mean, found.low, found.high) == tuple(size * x for x in (wanted.mean, wanted.low, wanted.high))
        assert found.p == wanted.p


def test_folds_that_share_rows_raise_false_alarms_at_the_rate_promised_and_the_plain_test_at_a_multiple():
    rng, runs, folds = np.random.default_rng(0), 4000, 10
    shared, own = rng.normal(size=(runs, 1)), rng.normal(size=(runs, folds))
    differences = math.sqrt(FRACTION) * shared + math.sqrt(1 - FRACTION) * own
    corrected = np.mean([paired_test(d, test_fraction=FRACTION).p < 0.05 for d in differences])
    plain = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
    assert corrected == pytest.approx(0.05, abs=0.01)
    assert plain > 0.25


def test_holm_steps_down_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_a_missing_p_counts_as_a_test_without_a_finding():
    assert holm([None, 0.01, 0.02]) == pytest.approx([None, 0.03, 0.04])


def test_every_verdict(base):
    rng = np.random.default_rng(1)
    scores = {
        "reference": base,
        "better": base + 0.05 + rng.normal(0, 0.005, 10),
        "worse": base - 0.05 + rng.normal(0, 0.005, 10),
        "equal": base + 0.002 + rng.normal(0, 0.0005, 10),
        "unclear": base + rng.normal(0.01, 0.05, 10),
        "boosting": base + 0.06 + rng.normal(0, 0.005, 10),
    }
    found = judge(
        table({"accuracy": scores}),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=FRACTION,
        outside="boosting",
    )
    assert verdicts(found) == {name: name for name in scores if name != "boosting"} | {"boosting": "better"}
    assert found.ranking["objective"][:2].to_list() == ["boosting", "better"]
    assert found.ranking.filter(role="outside")["objective"].to_list() == ["boosting"]
    assert winner(found.ranking) == "better"
    # Practically equal, though a test sees it.
    equal = found.ranking.row(by_predicate=pl.col("objective") == "equal", named=True)
    assert equal["p_adjusted"] < 0.05
    assert equal["p_equal"] >= 0.95


def test_probabilities_and_p_are_those_of_the_pairs_and_only_candidates_are_counted(base):
    rng = np.random.default_rng(2)
    scores = {name: base + rng.normal(0.02, 0.02, 10) for name in ("a", "b", "trees")} | {"reference": base}
    found = judge(
        table({"accuracy": scores}),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=FRACTION,
        outside="trees",
    )
    rows = {row["objective"]: row for row in found.ranking.to_dicts()}
    alone = {name: paired_test(scores[name] - base, test_fraction=FRACTION, rope=0.01) for name in ("a", "b", "trees")}
    for name, pair in alone.items():
        assert rows[name]["p"] == pytest.approx(pair.p)
        assert rows[name]["p_better"] == pytest.approx(pair.above)
        assert (rows[name]["difference_low"], rows[name]["difference_high"]) == pytest.approx((pair.low, pair.high))
    assert [rows[n]["p_adjusted"] for n in ("a", "b")] == pytest.approx(holm([alone["a"].p, alone["b"].p]))
    assert rows["trees"]["p_adjusted"] == rows["trees"]["p"]
    assert all(rows["reference"][name] is None for name in ("p", "p_adjusted", "p_better", "p_equal", "p_worse"))
    mean = paired_test(scores["a"], test_fraction=FRACTION)
    assert (rows["a"]["accuracy"], rows["a"]["low"], rows["a"]["high"]) == pytest.approx(
        (mean.mean, mean.low, mean.high)
    )


def test_smaller_errors_are_better_and_the_region_is_a_percent_of_the_reference(base):
    scores = {
        "reference": 10 * base,
        "good": 10 * base - 1 + 0.1 * np.arange(10) / 10,
        "bad": 10 * base + 1 + base / 10,
    }
    found = judge(table({"rmse": scores}), metric=METRICS["rmse"], reference="reference", test_fraction=FRACTION)
    assert verdicts(found) == {"good": "better", "reference": "reference", "bad": "worse"}
    assert found.rope == pytest.approx(0.1 * base.mean())
    good = found.ranking.row(0, named=True)
    assert good["difference"] < 0
    assert good["p_better"] > 0.99
    assert (
        judge(
            table({"rmse": scores}), metric=METRICS["rmse"], reference="reference", test_fraction=FRACTION, rope=3.0
        ).rope
        == 3
    )


def test_an_objective_against_itself_is_equal_for_sure(base):
    found = judge(
        table({"accuracy": {"same": base, "reference": base}}),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=0.5,
    )
    row = found.ranking.row(by_predicate=pl.col("objective") == "same", named=True)
    assert (row["p"], row["p_equal"], row["verdict"]) == (1, 1, "equal")
    assert found.ranking["rank"].to_list() == [1, 1]
    assert found.ranking["objective"].to_list() == ["reference", "same"]
    assert winner(found.ranking) == "reference"


def test_a_run_cut_short_may_lack_the_outside_line(base):
    scores = table({"accuracy": {"reference": base, "a": base + 0.1}})
    found = judge(scores, metric=METRICS["accuracy"], reference="reference", test_fraction=FRACTION, outside="trees")
    assert set(found.ranking["role"]) == {"reference", "candidate"}


@pytest.mark.parametrize(("folds", "verdict"), [(10, "better"), (4, "unclear")])
def test_one_difference_in_all_folds_falls_back_on_the_signs(folds, verdict):
    base = np.arange(folds) / 16
    found = judge(
        table({"accuracy": {"reference": base, "a": base + 0.125}}),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=0.2,
    )
    row = found.ranking.row(0, named=True)
    assert (row["p"], row["verdict"]) == (2.0 ** (1 - folds), verdict)


def test_one_fold_leaves_everything_open():
    found = judge(
        table({"accuracy": {"reference": [0.5], "a": [0.9]}}),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=0.5,
    )
    row = found.ranking.row(0, named=True)
    assert row["difference"] == pytest.approx(0.4)
    assert row["verdict"] == "unclear"
    assert [row[name] for name in ("low", "difference_low", "p", "p_adjusted", "p_better")] == [None] * 5
    assert winner(found.ranking) == "reference"


def test_a_candidate_that_failed_is_unclear_and_last(base):
    broken = base + 0.2
    broken[3] = np.nan
    found = judge(
        table({"accuracy": {"reference": base, "all": base * np.nan, "some": broken}}),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=FRACTION,
    )
    assert verdicts(found) == {"reference": "reference", "some": "unclear", "all": "unclear"}
    assert found.ranking["objective"][-1] == "all"
    assert winner(found.ranking) == "reference"


def test_folds_without_a_partner_or_a_defined_metric_are_left_out(base):
    reference = base.copy()
    reference[0] = np.nan
    scores = table({"auroc": {"reference": reference, "a": base - 0.1 + base / 50}})
    scores = scores.filter(~((pl.col("objective") == "a") & (pl.col("repeat") == 1) & (pl.col("fold") == 4)))
    found = judge(scores, metric=METRICS["auroc"], reference="reference", test_fraction=FRACTION)
    row = found.ranking.row(by_predicate=pl.col("objective") == "a", named=True)
    assert row["folds"] == 8
    assert row["difference"] == pytest.approx((base / 50 - 0.1)[1:9].mean())
    assert found.differences.filter(objective="a").height == 8


def test_the_rank_takes_all_metrics(base):
    scores = {
        "accuracy": {"reference": base, "a": base + 0.03, "b": base + 0.01},
        "macro_f1": {"reference": base, "a": base + 0.01, "b": base + 0.02},
        "log_loss": {"reference": base, "a": base + 0.02, "b": base - 0.01},
    }
    found = judge(
        table(scores),
        metric=METRICS["accuracy"],
        reference="reference",
        test_fraction=FRACTION,
        ranked=tuple(METRICS.values()),
    )
    assert dict(found.ranking.select("objective", "rank").iter_rows()) == {"a": 2, "b": 1, "reference": 3}
    assert found.ranking["objective"].to_list() == ["a", "b", "reference"]
    assert found.rank_method == "kemeny"
    assert found.ranking["log_loss"].to_list() == pytest.approx([base.mean() + 0.02, base.mean() - 0.01, base.mean()])


def test_many_systems_are_ranked_by_borda(base):
    scores = {"reference": base} | {f"s{i}": base + i / 100 for i in range(20)}
    found = judge(
        table({"accuracy": scores}), metric=METRICS["accuracy"], reference="reference", test_fraction=FRACTION
    )
    assert found.rank_method == "borda"
    assert found.ranking["rank"].to_list() == [*range(1, 20), 20, 20]


def test_the_setting_shown_is_the_one_chosen_most_often(base):
    scores = table({"accuracy": {"reference": base, "a": base}}).with_columns(
        setting=pl.when(pl.col("objective") == "reference")
        .then(pl.lit("default"))
        .when(pl.col("fold") < 2)
        .then(pl.lit("tau=1"))
        .otherwise(pl.lit("tau=2"))
    )
    found = judge(scores, metric=METRICS["accuracy"], reference="reference", test_fraction=FRACTION)
    assert dict(found.ranking.select("objective", "setting").iter_rows()) == {"reference": "default", "a": "tau=2"}


def test_inner_rows_choose_the_setting_and_the_first_of_equals():
    rows = [
        # fold 0: the better; fold 1: a tie; fold 2: NaN loses; fold 3: what was broken off is not tested
        (0, 0, 0.5, False), (0, 1, 0.6, False),
        (1, 1, 0.7, False), (1, 0, 0.7, False),
        (2, 0, math.nan, False), (2, 1, 0.1, False),
        (3, 0, 0.9, True), (3, 1, 0.2, False),
    ]  # fmt: skip
    results = pl.DataFrame(
        [
            {
                "objective": "a",
                "repeat": 0,
                "fold": fold,
                "setting_number": setting,
                "inner_score": score,
                "dropped": dropped,
            }
            for fold, setting, score, dropped in rows
        ]
    )
    chosen = choose(results)
    assert chosen.drop("chosen").equals(results)
    assert chosen["chosen"].to_list() == [False, True, False, True, False, True, False, True]


def test_bad_input_is_named(base):
    scores = table({"accuracy": {"reference": base, "a": base}})

    def judged(frame=scores, metric=METRICS["accuracy"], reference="reference", **options):
        return judge(frame, metric=metric, reference=reference, test_fraction=FRACTION, **options)

    with pytest.raises(ValueError, match="scores must have a column 'rmse'"):
        judged(metric=METRICS["rmse"])
    with pytest.raises(ValueError, match=r"reference must be one of .*, got 'referense'; did you mean 'reference'\?"):
        judged(reference="referense")
    with pytest.raises(ValueError, match="one row an objective, fold and repeat, got 'a' twice in fold 0, repeat 0"):
        judged(pl.concat([scores, scores.filter(objective="a", fold=0, repeat=0)]))
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got 1"):
        judged(alpha=1.0)
    with pytest.raises(ValueError, match="values must be finite numbers, one a fold"):
        paired_test([0.1, math.inf], test_fraction=0.2)
    with pytest.raises(ValueError, match=r"test_fraction must be in \(0, 1\), got 0"):
        paired_test([0.1, 0.2], test_fraction=0.0)


def test_each_group_has_its_own_mean_interval_and_paired_difference(base):
    rng = np.random.default_rng(1)
    means = {"a": {"R": base, "C": base + 0.03}, "b": {"R": rng.uniform(size=10), "C": rng.uniform(size=10)}}
    scores = table({"accuracy": {"R": list(base), "C": list(base)}}).with_columns(
        groups=pl.struct("objective", "fold", "repeat").map_elements(
            lambda row: [float(means[g][row["objective"]][row["fold"] + 5 * row["repeat"]]) for g in "ab"],
            return_dtype=pl.List(pl.Float64),
        )
    )
    found = by_group(scores, ["a", "b"], reference="R", test_fraction=FRACTION, alpha=0.05)
    for row in found.to_dicts():
        own = np.asarray(means[row["group"]][row["objective"]])
        scale = own.std(ddof=1) * math.sqrt(1 / 10 + FRACTION / (1 - FRACTION))
        low, high = stats.t(df=9, loc=own.mean(), scale=scale).interval(0.95)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((own.mean(), low, high))
        if row["objective"] == "R":
            assert row["difference"] is None
        else:
            assert row["difference"] == pytest.approx((own - means[row["group"]]["R"]).mean())
    assert found.filter(objective="C", group="a")["difference"].item() == pytest.approx(0.03)
    assert found["folds"].to_list() == [10] * 4


def test_a_group_without_rows_in_a_fold_is_left_out_of_it_and_a_failed_objective_has_none():
    groups = {"R": [[0.5, None], [0.7, 1.0], [0.6, 0.0]], "C": [[math.nan] * 2] * 3}
    rows = [
        {"objective": name, "fold": fold, "repeat": 0, "groups": values}
        for name, each in groups.items()
        for fold, values in enumerate(each)
    ]
    found = by_group(pl.DataFrame(rows), ["a", "b"], reference="R", test_fraction=0.3, alpha=0.05)
    reference = found.filter(objective="R")
    assert reference["mean"].to_list() == pytest.approx([0.6, 0.5])
    assert reference["folds"].to_list() == [3, 2]
    assert found.filter(objective="C").select("mean", "low", "difference").rows() == [(None, None, None)] * 2


def test_the_reference_alone_is_ranked_by_itself(base):
    alone = judge(
        table({"accuracy": {"ref": base.tolist()}}), metric=METRICS["accuracy"], reference="ref", test_fraction=FRACTION
    )
    assert verdicts(alone) == {"ref": "reference"}
    assert alone.ranking["accuracy"].to_list() == pytest.approx([base.mean()])
