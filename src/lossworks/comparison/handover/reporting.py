"""The conversion of a comparison into the plain data that the report shows."""

import shlex
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lossworks.catalog import papers
from lossworks.checks import number
from lossworks.comparison.attack import RESTARTS, ROBUST, ROWS, STEPS, VERIFIED, Attack
from lossworks.comparison.candidates import OUTSIDE
from lossworks.comparison.handover.outcome import Outcome
from lossworks.comparison.plan import Plan
from lossworks.comparison.tasks.base import Target
from lossworks.metrics.registry import worst_group
from lossworks.report.data import (
    CandidateEntry,
    Difference,
    Groups,
    GroupScore,
    ReportData,
    Reuse,
    Robustness,
)
from lossworks.runs.software import versions


def answer(plan: Plan, ranking: pl.DataFrame, winner: str) -> str:
    """The result in one sentence, followed by the score of the outside line."""
    metric = plan.metric
    rows = {row["objective"]: row for row in ranking.to_dicts()}
    reference = rows[plan.reference]
    if winner != plan.reference:
        best = rows[winner]
        text = (
            f"{winner} is better than {plan.reference} on {metric.title}: {number(best[metric.name])} against "
            f"{number(reference[metric.name])}, a difference of {_interval(best)}, adjusted p {_p(best['p_adjusted'])}."
        )
    else:
        reached = reference[metric.name]
        level = "not a number" if reached is None else number(reached)
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
        text += f" Gradient boosting on the same folds: {number(rows[OUTSIDE][metric.name])}."
    return text


def _interval(row: dict[str, Any]) -> str:
    if row["difference_low"] is None or not np.isfinite(row["difference_low"]):
        return number(row["difference"], sign=True)
    middle, low, high = (number(row[name], sign=True) for name in ("difference", "difference_low", "difference_high"))
    return f"{middle} (95 % interval {low} to {high})"


def _p(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "unknown"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def report_data(comparison: Outcome, run: Path | None) -> ReportData:
    """Everything that the report shows of this comparison; ``run`` is the run folder, or None if it was not saved."""
    plan, dataset, ranking = comparison.plan, comparison.dataset, comparison.ranking
    metric, target = plan.metric, Target(dataset.target, dataset.classes)
    by_objective: dict[str, list[dict[str, Any]]] = {}
    chosen = _chosen_keys(comparison)
    for replica in comparison.replicas:
        if _key(replica) in chosen and not replica.get("diverged"):
            by_objective.setdefault(replica["objective"], []).append(replica)
    reported = [*plan.task.metrics, *([] if dataset.group is None else [worst_group(metric)])]
    higher = {known.name: known.higher_is_better for known in reported}
    if plan.attack is not None:
        higher |= {ROBUST: True} | ({VERIFIED: True} if plan.attack.certify else {})
    portraits = {name: [replica["portrait"] for replica in rows] for name, rows in by_objective.items()}
    return ReportData(
        title=f"{dataset.target_name} · lossworks compare",
        data_name=dataset.name,
        task=plan.task.described(target),
        metric=metric.name,
        metric_higher_is_better=metric.higher_is_better,
        answer=answer(plan, ranking, comparison.winner),
        reference=plan.reference,
        outside=OUTSIDE,
        winner=comparison.winner,
        partial=comparison.partial,
        ranking=ranking.to_dicts(),
        metric_columns=list(higher),
        higher_is_better=higher,
        titles={known.name: known.title for known in reported},
        differences=_differences(by_objective, plan),
        groups=_groups(comparison),
        panels=plan.task.panels(portraits, target, plan.reference),
        curves={
            name: [replica["curve"] for replica in rows if replica.get("curve")] for name, rows in by_objective.items()
        },
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
    metric = plan.metric.name
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
        "metric": comparison.plan.metric.of_one_group,
        "names": dataset.group_names,
        "objectives": objectives,
        "counts": np.bincount(dataset.group, minlength=len(dataset.group_names)).tolist(),
    }


def _robustness(by_objective: dict[str, list[dict[str, Any]]], attack: Attack) -> Robustness:
    curves = {name: [r["robustness"] for r in rows if "robustness" in r] for name, rows in by_objective.items()}
    return {"norm": attack.norm, "eps": attack.eps, "curves": {name: found for name, found in curves.items() if found}}


def _candidates(comparison: Outcome) -> list[CandidateEntry]:
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
    calibrated = f" {plan.task.calibrating}" if plan.task.calibrating else ""
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
        f"folds, drawn {plan.repeats} times{plan.task.splitting}. A fold's test rows are used once, to score. Within "
        f"its training rows, {training.batch_size} rows a step for at most {training.max_steps} steps, with early "
        f"stopping and the choice of the setting on inner rows that the model does not train on.{calibrated}",
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
