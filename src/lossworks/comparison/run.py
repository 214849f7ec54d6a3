"""A comparison from end to end: read, examine, plan, train, judge, hand over."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from lossworks.checks import InputError, number
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
    """Train every fitting objective on this data, side by side; say which is better and whether the difference is real.

    Args:
        data: A file (CSV, TSV, Parquet, Arrow, or NPZ with ``X`` and ``y``), a polars or pandas frame, a dict of
            columns, or a pair ``(X, y)`` of arrays. By default the embedded example is used.
        target: The column to predict.
        objectives: Names from the catalog (parts joined by ``+``), or a dict ``{name: Loss or Objective}``. By default
            they are those of the catalog that help with what is found in the data. The task's reference
            (cross-entropy, the squared loss, or the Poisson loss) is always among them.
        metric: The metric that decides. By default it is accuracy, or balanced accuracy if the classes are imbalanced;
            RMSE for a real target; and the Poisson deviance for counts. With groups, the worst group decides under
            ``"worst_group_accuracy"`` and its like.
        model: ``"mlp"``, ``"linear"``, ``"cnn"`` (images), or a factory ``(input_shape, outputs) -> nn.Module``.
        folds: The number of folds, >= 2.
        repeats: How many times the folds are drawn, 1 to 1,000.
        group: A column that names each row's group; it is not used as a feature. The metric of the worst group is then
            reported beside the mean, and objectives that guard the worst group or the worst rows are tried.
        seed: The seed of every random draw.
        budget: A number of seconds, after which no further group of models is started; what is finished is then
            reported as a partial result.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        out: The run folder to write; by default none is written. If it holds an unfinished run of the same plan, that
            run is continued.
        task: ``"binary"``, ``"multiclass"``, ``"real"`` or ``"counts"``, if the task that is recognised from the target
            is not the right one. Counts are never recognised; they must always be named.
        drop: Columns to leave out.
        columns: How to read columns whose values do not show it, such as ``{"signup": "date"}``; the other kinds are
            ``"category"`` and ``"number"``.
        rope: Half the width of the region of practical equivalence, in the metric's unit; by default 0.01 for metrics
            in [0, 1], and 1 % of the reference's mean for others.
        training: The batch size, number of steps and other settings of the training.
        attack: A norm and a radius, such as ``"linf:0.1"`` or ``"l2:0.5"``. The accuracy on inputs that PGD (20 steps,
            5 restarts) moves within that ball is then reported too, and objectives that train against the attack are
            tried. The radius is in the units of the scaled columns, and only numbers and dates are moved.
        certify: Whether to also report the share of rows that bounds on the network prove right under every attack
            within that ball. The bounds must be known for all layers of the network, as for ``"mlp"`` and ``"linear"``.
        resume: The folder of a run that was stopped in any way. The run is continued with the folder's data and
            options, and its results are the same as if it had never stopped. Data that did not come from a file, a
            model factory and objectives of your own must be given again. ``budget``, ``engine``, ``memory`` and
            ``watch`` are not kept in the folder; they apply to this call.
        engine: ``"local"``, or ``"ray"`` for the machines of a Ray cluster; the numbers are the same.
        address: The address of the Ray cluster's head, ``"HOST:PORT"`` or ``"auto"``; by default it is taken from
            ``RAY_ADDRESS``, and if that is not set, Ray uses this machine's processors.
        memory: The memory that the models in training may use besides the data, such as ``"4GB"`` or a number of bytes;
            by default half of what is free. Models that would need more are trained in parts, which changes no number.
            It applies to the local engine; on a Ray cluster each task uses its share of its node's free memory.
        watch: Called with a :class:`Progress` from time to time during the run.

    Raises:
        InputError: the data or the options have a fault; the message says in one line what, where and what to do.
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
    dataset = replace(dataset, features=dataset.features[:0])  # the table is not needed after it is encoded
    x = torch.from_numpy(matrix)
    groups = [] if dataset.group is None else [dataset.group]
    fingerprint = plan.fingerprint([matrix, dataset.target, *groups], architecture.described(), model, device.type)
    with opened(out, fingerprint, lambda: described(data, asked, device.type, OPTIONS), OPTIONS) as journal:
        check_replicas(journal.results(), journal.path)
        workload = Workload(plan, dataset, x, architecture, device)
        partial = Bench(workload, journal, _Leader(plan), watch, began).run(engine, budget)
        replicas = journal.results()
        said = dict.fromkeys(note for replica in replicas for note in replica.get("notes", ()))
        findings = (*findings, *(Finding("work", f"{note}.", {}, (), "notice") for note in said))
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
    """Tracks the objective with the best mean of the deciding metric so far."""

    def __init__(self, plan: Plan) -> None:
        self.reference, self.decides = plan.reference, plan.metric
        self.scores: dict[str, list[float]] = {}

    def count(self, results: Results) -> None:
        """Add the results of a group's models."""
        for replica in results:
            self.scores.setdefault(replica["objective"], []).append(replica["metrics"][self.decides.name])

    def best(self) -> str:
        """The best objective so far with its mean, as text; empty if there are no results yet."""
        if not self.scores:
            return ""
        means = {name: float(np.mean(values)) for name, values in self.scores.items()}
        best = (max if self.decides.higher_is_better else min)(means, key=means.__getitem__)
        return f"{best} {number(means[best])}"

    def enough(self) -> bool:
        """Whether there are results of the reference, which the others are compared with."""
        return self.reference in self.scores


def _require_reference(replicas: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    if all(replica["objective"] != plan.reference for replica in replicas):
        raise InputError("the run was stopped before the reference was trained: there is nothing to report yet")


def _require_finite(comparison: Comparison, out: Path) -> None:
    """Raise if every model of the reference diverged, so that there is none to hand over; write the report first."""
    reference = comparison.plan.reference
    if all(replica.get("diverged") for replica in comparison.replicas if replica["objective"] == reference):
        report = comparison.report(out / "report.html")
        raise InputError(
            f"{out}: every model of the reference {reference} diverged, so there is nothing to compare with and no "
            f"model to hand over; what was reached is in {report}. Give the target in another unit or another --model, "
            f"or in Python a smaller training=Training(lr=...)"
        )


def _flat(replica: Mapping[str, Any]) -> dict[str, Any]:
    """A replica's result as a row of the table of results."""
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
