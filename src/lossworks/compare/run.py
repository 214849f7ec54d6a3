"""The main job from end to end: read, examine, plan, train, judge, hand over."""

import contextlib
import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from lossworks.compare.attack import Attack, check_certified
from lossworks.compare.data import Dataset, check_folds, embedded, read
from lossworks.compare.encode import Encoder
from lossworks.compare.engines import Engine, find_engine
from lossworks.compare.errors import InputError
from lossworks.compare.findings import Finding, examine
from lossworks.compare.folder import continued, described, finish, opened
from lossworks.compare.handover import Comparison
from lossworks.compare.jobs import Training
from lossworks.compare.journal import Journal
from lossworks.compare.judge import choose, judge
from lossworks.compare.model import check_option
from lossworks.compare.models import Architecture, Factory, architecture_of
from lossworks.compare.plan import OUTSIDE, Plan, choose_candidates, digest_of, make_plan
from lossworks.compare.replica import check_replicas
from lossworks.compare.work import Results, Workload
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective
from lossworks.roles import Loss

IMBALANCED = 3.0
"""From this ratio of the largest to the smallest class on, the default metric counts every class the same."""
MOST_REPEATS = 1_000
"""Each is a row of the plan for every model: of a million the plan alone would take all memory."""


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands: what is running, how many models of how many are trained, how long it may take yet.

    ``note`` is the last that there was to say, such as that memory ran out and a group was trained in parts.
    """

    running: str
    done: int
    total: int
    share: float
    seconds_left: float | None
    best: str
    note: str = ""


Watch = Callable[[Progress], None]


def compare(
    data: Any = None,
    target: str | None = None,
    *,
    objectives: Sequence[str] | Mapping[str, Loss | Objective] | None = None,
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
            that the findings point to. The reference (cross-entropy, or the squared loss) is always among them.
        metric: What decides; by default accuracy, balanced accuracy where classes are imbalanced, RMSE where real.
            With groups ``"worst_group_accuracy"`` and the like let the worst group decide.
        model: ``"mlp"``, ``"linear"``, ``"cnn"`` (images), or a factory ``(input_shape, outputs) -> nn.Module``.
        folds: How many folds, >= 2, and ``repeats`` how often they are drawn anew, 1 to 1,000.
        group: A column of groups; the worst group's metric is then reported beside the mean, and objectives that guard
            the worst group or the worst rows are tried. It is no feature.
        seed: Of everything that is drawn.
        budget: Seconds after which no further group of models is begun; what is finished is reported as partial.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        out: The run folder to write; none is written without it. An unfinished run of the same plan is continued.
        task: ``"binary"``, ``"multiclass"`` or ``"real"``, where the target's column does not say it right.
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
        data, asked = continued(Path(resume), data, asked, DEFAULTS)
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
    _check_options(folds, repeats, seed, budget, rope)
    device = find_device(asked["device"])
    options = {name: asked[name] for name in ("target", "task", "group", "drop", "columns")}
    dataset = embedded() if data is None else read(data, **options)
    if data is None and target not in (None, dataset.target_name):
        raise InputError(
            f"target {target!r}: the embedded data has the target {dataset.target_name!r}; name a file for another"
        )
    check_folds(dataset, folds)
    metric = _metric(asked["metric"], dataset)
    architecture = architecture_of(asked["model"], dataset.features)
    encoder = Encoder.fit(dataset.features)
    matrix = encoder.transform(dataset.features)
    noted = tuple(Finding("note", f"{note[0].upper()}{note[1:]}.", {}, (), "info") for note in dataset.notes)
    findings = (*noted, *examine(dataset, matrix, seed=seed))
    attack = _attack(asked["attack"], asked["certify"], dataset, encoder, architecture)
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
    model = _check_model(architecture, matrix.shape[1:])
    rows, width = len(matrix), _width(dataset.features)
    dataset = replace(dataset, features=dataset.features[:0])  # the table is not needed again once it is encoded
    x = torch.from_numpy(matrix)
    groups = [] if dataset.group is None else [dataset.group]
    fingerprint = plan.fingerprint([matrix, dataset.target, *groups], architecture.described(), model, device.type)
    with opened(out, fingerprint, lambda: described(data, asked, device.type)) as journal:
        check_replicas(journal.replicas(), journal.path)
        partial = _Bench(Workload(plan, dataset, x, architecture, device), journal, watch, began).run(engine, budget)
        replicas = journal.replicas()
        said = dict.fromkeys(note for replica in replicas for note in replica.get("notes", ()))
        findings = (*findings, *(Finding("work", f"{note[0].upper()}{note[1:]}.", {}, (), "notice") for note in said))
        _require_reference(replicas, plan)
        scores = choose(pl.DataFrame([_flat(replica) for replica in replicas], infer_schema_length=None))
        judgement = judge(
            scores.filter(pl.col("chosen")),
            metric=metric,
            reference=plan.reference,
            test_fraction=1 / folds,
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
                finish(out)
    return comparison


class _Bench:
    """The plan at work: every group that the journal does not have is done by an engine, and committed."""

    def __init__(self, workload: Workload, journal: Journal, watch: Watch | None, began: float) -> None:
        self.workload, self.journal, self.watch, self.began = workload, journal, watch, began
        self.decides = find_metric(workload.plan.metric, workload.plan.task)
        self.total = sum(workload.size(number) for number in workload.order())
        self.done, self.fresh = 0, 0
        self.within: dict[int, float] = {}
        self.scores: dict[str, list[float]] = {}
        self.note = ""
        self.stopped = self.spent = False

    def run(self, engine: Engine, budget: float | None) -> str | None:
        """Have all done that is not; what cut it short, in words, or None."""
        committed = self.journal.done()
        self.done = sum(map(self.workload.size, committed))
        self._count(self.journal.replicas())

        def begin() -> bool:
            self.spent = budget is not None and time.monotonic() - self.began > budget and self.done > 0
            return not self.spent

        numbers = [number for number in self.workload.order() if number not in committed]
        with (
            _interruptible(self),
            contextlib.closing(
                engine.run(self.workload, numbers, tell=self._tell, begin=begin, stop=lambda: self.stopped)
            ) as finished,
        ):
            for number, results in finished:
                self.journal.add(number, results)
                self.within.pop(number, None)
                self.done += self.workload.size(number)
                self.fresh += self.workload.size(number)
                self._count(results)
        if self.done == self.total:
            return None
        if self.stopped and self.workload.plan.reference not in self.scores:
            raise KeyboardInterrupt  # there is nothing to report yet
        return f"stopped after its budget of {budget:g} s" if self.spent else "stopped by the user"

    def _count(self, results: Results) -> None:
        for replica in results:
            self.note = (replica.get("notes") or [self.note])[-1]
            self.scores.setdefault(replica["objective"], []).append(replica["metrics"][self.decides.name])

    def _tell(self, number: int, within: float) -> None:
        if self.watch is None:
            return
        self.within[number] = within
        under_way = sum(self.within.values())
        worked, left = self.fresh + under_way, self.total - self.done - under_way
        seconds = (time.monotonic() - self.began) * left / worked if worked >= 1 else None
        done, share = int(self.done + under_way), (self.done + under_way) / self.total
        self.watch(Progress(self.workload.name(number), done, self.total, share, seconds, self._leader(), self.note))

    def _leader(self) -> str:
        """The objective with the best mean so far, with its mean."""
        if not self.scores:
            return ""
        means = {name: float(np.mean(values)) for name, values in self.scores.items()}
        best = (max if self.decides.higher_is_better else min)(means, key=means.__getitem__)
        return f"{best} {means[best]:.3f}"


@contextlib.contextmanager
def _interruptible(bench: _Bench) -> Iterator[None]:
    """Ctrl-C asks for a stop at the next evaluation; a second one is what it always is."""

    def ask(*_: object) -> None:
        bench.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # only the main thread has signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def find_device(device: str) -> torch.device:
    """The device of that name, if this machine has it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for, but torch finds no GPU here; use --device cpu")
    return torch.device(device)


def _metric(name: str | None, dataset: Dataset) -> str:
    if name is None:
        if dataset.task == "real":
            return "rmse"
        counts = np.bincount(dataset.target)
        return "balanced_accuracy" if counts.max() >= IMBALANCED * counts.min() else "accuracy"
    try:
        metric = find_metric(name, dataset.task)
    except ValueError as error:
        raise InputError(f"{error} (the target is {dataset.task})") from error
    if metric.of_groups and dataset.group is None:
        raise InputError(f"metric: {name!r} needs groups: name their column, as --group or group= does")
    return metric.name


def _attack(
    text: str | None, certify: bool, dataset: Dataset, encoder: Encoder, architecture: Architecture
) -> Attack | None:
    if not isinstance(certify, bool):
        raise InputError(f"certify must be True or False, got {certify!r}")
    if text is None:
        if certify:
            raise InputError("certify: say against what, as --attack linf:0.1 or attack= does")
        return None
    if dataset.task == "real":
        raise InputError(f"attack: {dataset.target_name!r} is real-valued, and there is no accuracy to attack")
    attack = replace(Attack.parse(text, encoder), certify=certify)
    if certify:
        with torch.random.fork_rng([]):
            network = architecture.sized(encoder.width, 3, "classes").network()
        check_certified(network, attack, encoder.width)
    return attack


def _check_options(folds: int, repeats: int, seed: int, budget: float | None, rope: float | None) -> None:
    check_option("folds", folds, 2)
    check_option("repeats", repeats, 1, MOST_REPEATS)
    check_option("seed", seed, 0)
    if budget is not None and not budget > 0:
        raise InputError(f"budget must be a number of seconds > 0, got {budget!r}")
    if rope is not None and not 0 <= rope <= sys.float_info.max:
        raise InputError(f"rope must be a number >= 0 in the metric's unit, got {rope!r}")


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


def _check_model(architecture: Architecture, shape: tuple[int, ...]) -> str:
    """A digest of what a factory of the user's own makes, which must be a network from such rows to the outputs."""
    if isinstance(architecture.model, str):
        return ""
    name = getattr(architecture.model, "__name__", "model")
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(0)
            network = architecture.sized(shape, 3, "classes").network().eval()
            got = network(torch.randn(2, *shape))
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"model: {name}({shape}, 3) fails on two rows ({type(error).__name__}: {reason})") from error
    if tuple(got.shape) != (2, 3):
        raise InputError(
            f"model: {name}({shape}, 3) must map two rows to outputs of shape (2, 3), got {tuple(got.shape)}"
        )
    behaves = (got.double().round(decimals=3) + 0.0).tolist()
    return f"{digest_of(network)} {behaves}"
