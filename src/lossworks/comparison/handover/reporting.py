"""A comparison in the report's plain terms."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lossworks.comparison.attack import RESTARTS, ROBUST, ROWS, STEPS, VERIFIED, Attack
from lossworks.comparison.handover.outcome import Outcome
from lossworks.comparison.plan import OUTSIDE, Plan
from lossworks.comparison.train.evaluate import LEVELS, PAIRS, worst_group_name
from lossworks.metrics.registry import METRICS, find_metric, metrics_for
from lossworks.report.data import (
    CandidateEntry,
    Difference,
    Groups,
    GroupScore,
    Recall,
    Reliability,
    ReliabilityBin,
    ReportData,
    Residuals,
    Reuse,
    Robustness,
)
from lossworks.runs.software import versions


def answer(plan: Plan, ranking: pl.DataFrame, winner: str) -> str:
    """The result in one sentence, the outside line never left out."""
    metric = find_metric(plan.metric)
    rows = {row["objective"]: row for row in ranking.to_dicts()}
    reference = rows[plan.reference]
    if winner != plan.reference:
        best = rows[winner]
        text = (
            f"{winner} is better than {plan.reference} on {metric.title}: {best[metric.name]:.3f} against "
            f"{reference[metric.name]:.3f}, a difference of {_interval(best)}, adjusted p {_p(best['p_adjusted'])}."
        )
    else:
        reached = reference[metric.name]
        level = "not a number" if reached is None else f"{reached:.3f}"
        text = f"No objective is shown to be better than {plan.reference} ({metric.title} {level})"
        others = [
            row
            for name, row in rows.items()
            if name not in (plan.reference, OUTSIDE) and None not in (row[metric.name], row["difference"])
        ]
        if others:
            gain = 1 if metric.higher_is_better else -1
            nearest = max(others, key=lambda row: gain * row[metric.name])
            text += f"; the nearest, {nearest['objective']}, differs by {_interval(nearest)}"
        text += "."
    if OUTSIDE in rows and rows[OUTSIDE][metric.name] is not None:
        text += f" Gradient boosting on the same folds: {rows[OUTSIDE][metric.name]:.3f}."
    return text


def _interval(row: dict[str, Any]) -> str:
    if row["difference_low"] is None or not np.isfinite(row["difference_low"]):
        return f"{row['difference']:+.3f}"
    return f"{row['difference']:+.3f} (95 % interval {row['difference_low']:+.3f} to {row['difference_high']:+.3f})"


def _p(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "unknown"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def report_data(comparison: Outcome, run: Path | None) -> ReportData:
    """Everything that the report shows of this comparison; ``run`` is the folder that it was saved to, if it was."""
    plan, dataset, ranking = comparison.plan, comparison.dataset, comparison.ranking
    metric = find_metric(plan.metric, dataset.task)
    by_objective: dict[str, list[dict[str, Any]]] = {}
    chosen = _chosen_keys(comparison)
    for replica in comparison.replicas:
        if _key(replica) in chosen and not replica.get("diverged"):
            by_objective.setdefault(replica["objective"], []).append(replica)
    columns = [known.name for known in metrics_for(dataset.task)]
    higher = {name: METRICS[name].higher_is_better for name in columns}
    if dataset.group is not None:
        columns.append(worst_group_name(metric.name))
        higher[columns[-1]] = metric.higher_is_better
    if plan.attack is not None:
        columns += [ROBUST, VERIFIED] if plan.attack.certify else [ROBUST]
        higher |= {ROBUST: True, VERIFIED: True}
    classes = dataset.task != "real"
    return ReportData(
        title=f"{dataset.target_name} · lossworks compare",
        data_name=dataset.name,
        task=dataset.task,
        metric=metric.name,
        metric_higher_is_better=metric.higher_is_better,
        answer=answer(plan, ranking, comparison.winner),
        reference=plan.reference,
        outside=OUTSIDE,
        winner=comparison.winner,
        partial=comparison.partial,
        ranking=ranking.to_dicts(),
        metric_columns=columns,
        higher_is_better=higher,
        differences=_differences(by_objective, plan),
        groups=_groups(comparison),
        recall=_recall(by_objective, dataset.classes, dataset.target) if classes else None,
        reliability={name: _reliability(rows) for name, rows in by_objective.items()} if classes else None,
        curves={
            name: [replica["curve"] for replica in rows if replica.get("curve")] for name, rows in by_objective.items()
        },
        residuals=None if classes else _residuals(by_objective),
        robustness=None if plan.attack is None else _robustness(by_objective, plan.attack),
        findings=[{"level": f.level, "text": f.text, "numbers": f.numbers} for f in comparison.findings],
        candidates=_candidates(comparison),
        method=_method(comparison),
        reuse=None if run is None else _reuse(run.as_posix()),
        versions=versions(),
        seed=plan.seed,
        rows=comparison.shape[0],
        columns=comparison.shape[1],
        seconds=comparison.seconds,
        rope=comparison.judgement.rope,
    )


def _reuse(run: str) -> Reuse:
    return {
        "run": run,
        "predict": f"lossworks predict {shlex.quote(run)} new.csv",
        "python": f"model = lw.load({run!r})\nmodel.predict(frame)",
        "recipe": f"python {shlex.quote(run + '/recipe.py')}",
    }


def _key(replica: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(replica[name] for name in ("objective", "setting_number", "fold", "repeat"))


def _chosen_keys(comparison: Outcome) -> set[tuple[Any, ...]]:
    return {_key(row) for row in comparison.results.filter(pl.col("chosen")).to_dicts()}


def _differences(by_objective: dict[str, list[dict[str, Any]]], plan: Plan) -> dict[str, list[Difference]]:
    metric = plan.metric
    reference = {(r["fold"], r["repeat"]): r["metrics"][metric] for r in by_objective.get(plan.reference, ())}
    return {
        name: [
            {
                "fold": r["fold"],
                "repeat": r["repeat"],
                "difference": r["metrics"][metric] - reference[r["fold"], r["repeat"]],
            }
            for r in rows
            if (r["fold"], r["repeat"]) in reference
        ]
        for name, rows in by_objective.items()
        if name != plan.reference
    }


def _groups(comparison: Outcome) -> Groups | None:
    groups, dataset = comparison.groups, comparison.dataset
    if groups is None or dataset.group is None:
        return None
    objectives: dict[str, list[GroupScore]] = defaultdict(list)
    for row in groups.to_dicts():
        objectives[row["objective"]].append(
            {
                "mean": row["mean"],
                "low": row["low"],
                "high": row["high"],
                "difference": row["difference"],
                "difference_low": row["difference_low"],
                "difference_high": row["difference_high"],
            }
        )
    return {
        "metric": find_metric(comparison.plan.metric).of_one_group,
        "names": dataset.group_names,
        "objectives": objectives,
        "counts": np.bincount(dataset.group, minlength=len(dataset.group_names)).tolist(),
    }


def _recall(by_objective: dict[str, list[dict[str, Any]]], classes: Sequence[str], target: np.ndarray) -> Recall:
    def mean(rows: list[dict[str, Any]], k: int) -> float | None:
        known = [r["recall"][k] for r in rows if r["recall"][k] is not None]
        return float(np.mean(known)) if known else None

    return {
        "classes": list(classes),
        "objectives": {name: [mean(rows, k) for k in range(len(classes))] for name, rows in by_objective.items()},
        "counts": np.bincount(target, minlength=len(classes)).tolist(),
    }


def _reliability(rows: list[dict[str, Any]]) -> Reliability:
    def bins(when: str) -> list[ReliabilityBin]:
        confidence, right, count = np.sum([r["reliability"][when] for r in rows], axis=0).T
        return [
            {"confidence": float(c / n), "accuracy": float(a / n), "count": int(n)}
            for c, a, n in zip(confidence, right, count, strict=True)
            if n
        ]

    return {
        "before": bins("before"),
        "after": bins("after"),
        "ece_before": float(np.mean([r["ece_before"] for r in rows])),
        "ece_after": float(np.mean([r["metrics"]["ece"] for r in rows])),
        "temperature": float(np.median([r["temperature"] for r in rows])),
    }


def _residuals(by_objective: dict[str, list[dict[str, Any]]]) -> Residuals:
    return {
        "levels": list(LEVELS),
        "quantiles": {
            name: np.mean([r["residuals"]["quantiles"] for r in rows], axis=0).tolist()
            for name, rows in by_objective.items()
        },
        "pairs": {
            name: [(actual, value) for r in rows for actual, value in r["residuals"]["pairs"]][: 10 * PAIRS]
            for name, rows in by_objective.items()
        },
    }


def _robustness(by_objective: dict[str, list[dict[str, Any]]], attack: Attack) -> Robustness:
    curves = {name: [r["robustness"] for r in rows if "robustness" in r] for name, rows in by_objective.items()}
    return {"norm": attack.norm, "eps": attack.eps, "curves": {name: found for name, found in curves.items() if found}}


def _candidates(comparison: Outcome) -> list[CandidateEntry]:
    from lossworks.catalog import papers

    entries: list[CandidateEntry] = []
    for candidate in comparison.plan.candidates:
        rows = comparison.results.filter((pl.col("objective") == candidate.name) & pl.col("chosen"))
        keys = [key for part in candidate.parts for key in part.papers]
        entries.append(
            {
                "name": candidate.name,
                "why": candidate.why,
                "settings": [candidate.setting(number) for number in range(candidate.size)],
                "chosen": dict(Counter(rows["setting"].to_list())),
                "papers": [papers()[key].cite() for key in dict.fromkeys(keys)],
            }
        )
    return entries


def _method(comparison: Outcome) -> list[str]:
    plan, training = comparison.plan, comparison.plan.training
    rope = comparison.judgement.rope
    stratified = "" if plan.task == "real" else ", each class in its share"
    calibrated = (
        ""
        if plan.task == "real"
        else " One temperature a model is fitted on the same inner rows before probabilities are scored, so that "
        "losses that do not estimate probabilities are judged fairly on log-loss and calibration error."
    )
    attacked = (
        []
        if plan.attack is None
        else [
            f"Robust accuracy is that on test rows whose inputs PGD has moved within a {plan.attack.norm} ball of "
            f"{plan.attack.eps:g}, in the units of the scaled columns: {STEPS} steps, {RESTARTS} restarts, the worst "
            f"input that was met, of at most {ROWS:,} rows a fold. Only numbers and dates are moved. What PGD does not "
            f"find may still be there, so a stronger attack may find the accuracy lower."
            + (
                " Verified accuracy is the share of the same rows that bounds on the network (CROWN) prove right, "
                "wherever in the ball they lie; no attack can find it lower."
                if plan.attack.certify
                else ""
            )
        ]
    )
    return [
        f"Every objective trains the same model ({comparison.architecture.described()}) on the same {plan.folds} "
        f"folds, drawn {plan.repeats} times{stratified}. A fold's test rows are used once, to score. Within its "
        f"training rows, {training.batch_size} rows a step for at most {training.max_steps} steps, with early stopping "
        f"and the choice of the setting on inner rows that the model does not train on.{calibrated}",
        "A difference is the objective's score less the reference's on the same test rows. Its interval and p-value "
        "are those of the corrected resampled t-test (Nadeau and Bengio 2003), which allows for training rows that "
        "folds share; the p-values are adjusted over the candidates by Holm's method.",
        f"The chances of being better, equal and worse are those of the Bayesian correlated t-test (Benavoli and "
        f"others 2017), where differences within ±{rope:.3g} count as equal in practice. A verdict is 'equal' when "
        f"that chance is 0.95 or more, 'better' or 'worse' when the adjusted p-value is below 0.05, and otherwise "
        f"'unclear'.",
        "The rank is the order that disagrees least with the orders by each metric (Kemeny's rule; Borda's for many "
        "objectives).",
        f"Gradient boosting is scikit-learn's, with its defaults, trained on all training rows of each fold. It is an "
        f"outside line: it says what another kind of model reaches, and is no candidate. Columns become numbers "
        f"without looking at the target, and are scaled by each fold's own training rows. Models trained: "
        f"{len(comparison.replicas)}.",
        *attacked,
    ]
