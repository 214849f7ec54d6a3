"""What a comparison gives back: the ranking and its reasons, the trained model, the report, the run folder."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from lossworks.compare.data import Dataset
from lossworks.compare.encode import Encoder
from lossworks.compare.engine import one_thread, train
from lossworks.compare.errors import InputError
from lossworks.compare.evaluate import fitted_temperature
from lossworks.compare.files import whole, whole_folder
from lossworks.compare.findings import Finding
from lossworks.compare.jobs import Job
from lossworks.compare.judge import Judgement, by_group, winner
from lossworks.compare.model import Model
from lossworks.compare.models import Architecture
from lossworks.compare.plan import OUTSIDE, Candidate, Plan, derive_seed, inner_split, training_facts
from lossworks.compare.recipe import recipe
from lossworks.compare.reporting import answer, report_data
from lossworks.compare.tables import load
from lossworks.metrics.registry import find_metric
from lossworks.report import render


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`lossworks.compare`.

    Attributes:
        plan: What was trained.
        findings: What was seen in the data, in plain words.
        judgement: The ranking and what it rests on.
        results: One row a trained model: setting, fold, repeat, whether its setting was chosen, every metric.
        partial: Why the run is incomplete, or None.
    """

    dataset: Dataset
    data: Any
    x: Tensor
    encoder: Encoder
    architecture: Architecture
    device: torch.device
    plan: Plan
    findings: tuple[Finding, ...]
    judgement: Judgement
    results: pl.DataFrame
    replicas: tuple[dict[str, Any], ...]
    partial: str | None
    shape: tuple[int, int]
    seconds: float

    @property
    def ranking(self) -> pl.DataFrame:
        """The objectives from best to worst, each with its difference to the reference and its verdict."""
        return self.judgement.ranking

    @property
    def winner(self) -> str:
        """The best objective that is really better than the reference, or else the reference."""
        return winner(self.ranking)

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        return answer(self.plan, self.ranking, self.winner)

    @cached_property
    def groups(self) -> pl.DataFrame | None:
        """The deciding metric of each group of rows, with its interval and difference to the reference; see
        :func:`lossworks.compare.judge.by_group`. None without groups."""
        if self.dataset.group is None:
            return None
        return by_group(
            self.results.filter(pl.col("chosen")),
            self.dataset.group_names,
            reference=self.plan.reference,
            test_fraction=self.judgement.test_fraction,
            alpha=self.judgement.alpha,
        )

    def chosen_setting(self, objective: str) -> int:
        """The setting of the objective that was chosen most often on inner rows, the first where there is a tie."""
        rows = self.results.filter((pl.col("objective") == objective) & pl.col("chosen"))
        counts = Counter(rows["setting_number"].to_list())
        return min(counts, key=lambda number: (-counts[number], number))

    def candidate(self, objective: str) -> Candidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.plan.candidates if candidate.name == objective)

    def model(self) -> Model:
        """The winner, trained on all rows but the inner ones that stop it and set its temperature."""
        return self._model

    @cached_property
    def _model(self) -> Model:
        candidate, dataset = self.candidate(self.winner), self.dataset
        setting = self.chosen_setting(self.winner)
        everything = np.arange(len(dataset.target))
        seed = derive_seed(self.plan.seed, "final", candidate.name)
        fit, inner = inner_split(everything, dataset.target, dataset.task != "real", seed)
        job = Job(
            objective=candidate.objective(
                setting, training_facts(dataset.target, fit, len(dataset.classes), len(dataset.group_names))
            ),
            fit=torch.from_numpy(fit),
            inner=torch.from_numpy(inner),
            seed=seed,
            contest=0,
        )
        y = torch.from_numpy(dataset.target).to(torch.float32 if dataset.task == "real" else torch.int64)
        metric = find_metric(self.plan.metric, dataset.task)
        group = None if dataset.group is None else torch.from_numpy(dataset.group)
        training, device = self.plan.training, self.device
        trained = train(self.x, y, [job], self.architecture, training, metric, group=group, device=device)
        with one_thread():
            outputs = trained.outputs(0, torch.from_numpy(inner)).cpu()
            if not bool(outputs.isfinite().all()):
                raise InputError(
                    f"the model of {candidate.name} that was trained on all rows diverged, though those of the folds "
                    "did not: choose another --seed, or in Python a smaller training=Training(lr=...)"
                )
            temperature = 1.0 if dataset.task == "real" else fitted_temperature(outputs, dataset.target[inner])
        return Model(
            task=dataset.task,
            target_name=dataset.target_name,
            classes=dataset.classes,
            objective=candidate.name,
            setting=candidate.setting(setting),
            temperature=temperature,
            encoder=self.encoder,
            architecture=trained.architectures[0],
            network=trained.module(0).cpu().eval(),
            columns=dataset.options.get("columns", {}),
        )

    def report(self, path: str | Path) -> Path:
        """Write the report as one HTML file that opens offline."""
        path = Path(path)
        run = path.parent if (path.parent / "model.json").is_file() else None
        with whole(path) as unfinished:
            unfinished.write_text(render(report_data(self, run)), encoding="utf-8")
        return path

    def save(self, path: str | Path) -> Path:
        """Write the run folder: report, results, model, recipe; all of them or none."""
        folder = Path(path)
        model = self.model()
        with whole_folder(folder) as staging:
            self.results.write_parquet(staging / "results.parquet")
            source = self._source(staging)
            (staging / "recipe.py").write_text(recipe(self, source), encoding="utf-8")
            (staging / "report.html").write_text(render(report_data(self, folder)), encoding="utf-8")
            model.save(staging)
        return folder

    def _source(self, folder: Path) -> str | None:
        """Where the recipe reads the data: the user's file, a copy of what came without one, or the embedded set."""
        if self.dataset.source is not None:
            return str(Path(self.dataset.source).resolve())
        if self.data is None:
            return None
        raw, _ = load(self.data, exact=self.dataset.target_name, arrays=("X", self.dataset.target_name))
        if isinstance(raw, dict):
            plain = {name: values.astype(str) if values.dtype.kind == "O" else values for name, values in raw.items()}
            np.savez(folder / "data.npz", allow_pickle=False, **plain)
            return "data.npz"
        raw.write_parquet(folder / "data.parquet")
        return "data.parquet"

    def to_json(self) -> dict[str, Any]:
        """The result for scripts."""
        return {
            "answer": self.answer,
            "winner": self.winner,
            "metric": self.plan.metric,
            "partial": self.partial,
            "seconds": round(self.seconds, 1),
            "ranking": [_finite(row) for row in self.ranking.to_dicts()],
            "groups": None if self.groups is None else [_finite(row) for row in self.groups.to_dicts()],
            "findings": [{"level": f.level, "key": f.key, "text": f.text} for f in self.findings],
            "outside": OUTSIDE,
        }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row as JSON has it, which knows no NaN and no infinity."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
