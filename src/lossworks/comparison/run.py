"""The main job from end to end: read, examine, plan, train, judge, hand over."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from lossworks.checks import InputError
from lossworks.comparison.attack import ROBUST, VERIFIED
from lossworks.comparison.candidates import OUTSIDE, choose_candidates
from lossworks.comparison.findings import Finding, examine
from lossworks.comparison.handover.comparison import Comparison
from lossworks.comparison.models.architecture import Factory, architecture_of
from lossworks.comparison.options import OPTIONS, attack_of, check_model, check_options, find_device, metric_of
from lossworks.comparison.plan import Plan, make_plan
from lossworks.comparison.read.dataset import check_folds, embedded, read
from lossworks.comparison.read.encode import Encoder
from lossworks.comparison.replica import check_replicas
from lossworks.comparison.train.jobs import Training
from lossworks.comparison.train.work import Workload
from lossworks.metrics.registry import worst_group
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss
from lossworks.runs.bench import Bench, Watch
from lossworks.runs.engines import Engine, find_engine
from lossworks.runs.folder import continued, described, finish, opened
from lossworks.runs.units import Results
from lossworks.verdict import choose, judge


def compare(
    data: Any = None,
    target: str | None = None,
    *,
    objectives: Sequence[str] | Mapping[str, Loss | BatchLoss | Objective] | None = None,
    metric: str | None = None,
    model: str | Factory = "mlp",
    folds: int = 5,
    repeats: int = 2,
    group: str | None = None,
    seed: int = 0,
    budget: float | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    task: str | None = None,
    drop: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    rope: float | None = None,
    training: Training | None = None,
    attack: str | None = None,
    certify: bool = False,
    resume: str | Path | None = None,
    engine: str = "local",
    address: str | None = None,
    memory: int | str | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Train every fitting objective on this data, side by side, and say which is better and whether that is real.

    Args:
        data: A file (CSV, TSV, Parquet, Arrow, or NPZ with ``X`` and ``y``), a polars or pandas frame, a dict of
            columns, or a pair ``(X, y)`` of arrays. Without data the embedded example is used.
        target: The column to predict.
        objectives: Names from the catalog (parts joined by ``+``), or ``{name: Loss or Objective}``; by default those
            of the catalog that help with what is found in the data. The task's reference (cross-entropy, the squared
            loss, or the Poisson loss) is always among them.
        metric: What decides; by default accuracy, balanced accuracy where classes are imbalanced, RMSE where real, the
            Poisson deviance of counts.
            With groups ``"worst_group_accuracy"`` and the like let the worst group decide.
        model: ``"mlp"``, ``"linear"``, ``"cnn"`` (images), or a factory ``(input_shape, outputs) -> nn.Module``.
        folds: How many folds, >= 2, and ``repeats`` how often they are drawn anew, 1 to 1,000.
        group: A column of groups; the worst group's metric is then reported beside the mean, and objectives that guard
            the worst group or the worst rows are tried. It is no feature.
        seed: Of everything that is drawn.
        budget: Seconds after which no further group of models is begun; what is finished is reported as partial.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        out: The run folder to write; none is written without it. An unfinished run of the same plan is continued.
        task: ``"binary"``, ``"multiclass"``, ``"real"`` or ``"counts"``, where the target's column does not say it
            right; that numbers are counts it never says by itself.
        drop: Columns to leave out.
        columns: How to read columns that do not say it themselves: ``{"signup": "date"}``; or ``"category"``,
            ``"number"``.
        rope: The region of practical equivalence in the metric's unit; 0.01 for metrics in [0, 1], else 1 % of the
            reference.
        training: Batch size, steps and the like.
        attack: ``"linf:0.1"`` or ``"l2:0.5"``, a norm and a radius: the accuracy on inputs that PGD (20 steps, 5
            restarts) moves within that ball is reported too, and objectives that train against it are tried. The ball
            is in the units of the scaled columns, and moves numbers and dates alone.
        certify: Whether the accuracy that bounds on the network prove against every attack in that ball is reported
            too; the network must be of layers whose bounds are known, as ``"mlp"`` and ``"linear"`` are.
        resume: The folder of a run that was stopped, however: it goes on with the data and the options that the folder
            names, to the same results as if it had never stopped. Data that was no file, a model factory and objectives
            of your own are given again; ``budget``, ``engine``, ``memory`` and ``watch`` are this call's own.
        engine: ``"local"``, or ``"ray"`` for the machines of a Ray cluster: the same numbers, from wherever they come.
        address: Of the Ray cluster's head, ``"HOST:PORT"`` or ``"auto"``; without it this machine's processors.
        memory: What the models in training may take beside the data, such as ``"4GB"`` or a number of bytes; by default
            half of what is free. Models are trained in parts where they would take more, which changes no number. It is
            the local engine's; on a Ray cluster each task takes its share of what its node has free.
        watch: Called with a :class:`Progress` while it runs.

    Raises:
        InputError: what does not fit in the data or the options, in one line that says what, where and what to do.
    """
    asked: dict[str, Any] = {
        "target": target,
        "objectives": objectives,
        "metric": metric,
        "model": model,
        "folds": folds,
        "repeats": repeats,
        "group": group,
        "seed": seed,
        "device": device,
        "task": task,
        "drop": drop,
        "columns": columns,
        "rope": rope,
        "training": training,
        "attack": attack,
        "certify": certify,
    }
    if resume is not None:
        if out is not None:
            raise InputError(f"out: a resumed run stays in its folder {resume}: leave out={str(out)!r} out")
        out = resume
        data, asked = continued(Path(resume), data, asked, DEFAULTS, OPTIONS)
    does = find_engine(engine, address, memory, find_device(asked["device"]))
    return _compare(data, asked, None if out is None else Path(out), does, budget, watch)


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(compare).parameters.items()}


def _compare(
    data: Any,
    asked: Mapping[str, Any],
    out: Path | None,
    engine: Engine,
    budget: float | None,
    watch: Watch | None,
) -> Comparison:
    began = time.monotonic()
    target, folds, repeats, seed, rope = (asked[name] for name in ("target", "folds", "repeats", "seed", "rope"))
    check_options(folds, repeats, seed, budget, rope)
    device = find_device(asked["device"])
    options = {name: asked[name] for name in ("target", "task", "group", "drop", "columns")}
    dataset = embedded() if data is None else read(data, **options)
    if data is None and target not in (None, dataset.target_name):
        raise InputError(
            f"target {target!r}: the embedded data has the target {dataset.target_name!r}; name a file for another"
        )
    check_folds(dataset, folds)
    metric = metric_of(asked["metric"], dataset)
    architecture = architecture_of(asked["model"], dataset.features)
    encoder = Encoder.fit(dataset.features)
    matrix = encoder.transform(dataset.features)
    noted = tuple(Finding("note", f"{note[0].upper()}{note[1:]}.", {}, (), "info") for note in dataset.notes)
    findings = (*noted, *examine(dataset, matrix, seed=seed))
    attack = attack_of(asked["attack"], asked["certify"], dataset, encoder, architecture)
    candidates = choose_candidates(dataset, findings, asked["objectives"], attack)
    plan = make_plan(
        dataset,
        candidates,
        metric=metric,
        folds=folds,
        repeats=repeats,
        seed=seed,
        training=asked["training"],
        attack=attack,
    )
    model = check_model(architecture, matrix.shape[1:])
    rows, width = len(matrix), _width(dataset.features)
    dataset = replace(dataset, features=dataset.features[:0])  # the table is not needed again once it is encoded
    x = torch.from_numpy(matrix)
    groups = [] if dataset.group is None else [dataset.group]
    fingerprint = plan.fingerprint([matrix, dataset.target, *groups], architecture.described(), model, device.type)
    with opened(out, fingerprint, lambda: described(data, asked, device.type, OPTIONS), OPTIONS) as journal:
        check_replicas(journal.results(), journal.path)
        workload = Workload(plan, dataset, x, architecture, device)
        partial = Bench(workload, journal, _Leader(plan), watch, began).run(engine, budget)
        replicas = journal.results()
        said = dict.fromkeys(note for replica in replicas for note in replica.get("notes", ()))
        findings = (*findings, *(Finding("work", f"{note[0].upper()}{note[1:]}.", {}, (), "notice") for note in said))
        _require_reference(replicas, plan)
        scores = choose(pl.DataFrame([_flat(replica) for replica in replicas], infer_schema_length=None))
        judgement = judge(
            scores.filter(pl.col("chosen")),
            metric=metric,
            reference=plan.reference,
            test_fraction=1 / folds,
            ranked=dataset.task.metrics,
            shown=(worst_group(metric).name, ROBUST, VERIFIED),
            rope=rope,
            outside=OUTSIDE,
        )
        comparison = Comparison(
            dataset=dataset,
            data=data if not isinstance(data, (str, Path)) else None,
            x=x,
            encoder=encoder,
            architecture=architecture,
            device=device,
            plan=plan,
            findings=findings,
            judgement=judgement,
            results=scores,
            replicas=tuple(replicas),
            partial=partial,
            shape=(rows, width),
            seconds=time.monotonic() - began,
        )
        if out is not None:
            _require_finite(comparison, out)
            comparison.save(out)
            if partial is None:
                finish(out, OPTIONS)
    return comparison


class _Leader:
    """The objective with the best mean of the deciding metric so far."""

    def __init__(self, plan: Plan) -> None:
        self.reference, self.decides = plan.reference, plan.metric
        self.scores: dict[str, list[float]] = {}

    def count(self, results: Results) -> None:
        """Take note of a group's models."""
        for replica in results:
            self.scores.setdefault(replica["objective"], []).append(replica["metrics"][self.decides.name])

    def best(self) -> str:
        """The objective and its mean."""
        if not self.scores:
            return ""
        means = {name: float(np.mean(values)) for name, values in self.scores.items()}
        best = (max if self.decides.higher_is_better else min)(means, key=means.__getitem__)
        return f"{best} {means[best]:.3f}"

    def enough(self) -> bool:
        """Whether the reference is there, by which the others are judged."""
        return self.reference in self.scores


def _require_reference(replicas: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    if all(replica["objective"] != plan.reference for replica in replicas):
        raise InputError("the run was stopped before the reference was trained: there is nothing to report yet")


def _require_finite(comparison: Comparison, out: Path) -> None:
    """Raise if the reference is nowhere finite, so that its model cannot be handed over; the report is written."""
    reference = comparison.plan.reference
    if all(replica.get("diverged") for replica in comparison.replicas if replica["objective"] == reference):
        report = comparison.report(out / "report.html")
        raise InputError(
            f"{out}: every model of the reference {reference} diverged, so there is nothing to compare with and no "
            f"model to hand over; what was reached is in {report}. Give the target in another unit or another --model, "
            f"or in Python a smaller training=Training(lr=...)"
        )


def _flat(replica: Mapping[str, Any]) -> dict[str, Any]:
    """A replica's result as a row of the results' table."""
    named = (
        "objective",
        "setting",
        "setting_number",
        "fold",
        "repeat",
        "dropped",
        "inner_score",
        "best_step",
        "temperature",
    )
    groups = {"groups": replica["groups"]} if "groups" in replica else {}
    return {name: replica.get(name) for name in named} | dict(replica["metrics"]) | groups


def _width(features: pl.DataFrame | np.ndarray) -> int:
    return features.width if isinstance(features, pl.DataFrame) else int(np.prod(features.shape[1:]))
