"""The result of a comparison: the ranking and its reasons, the trained model, the report and the run folder."""

from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossworks.checks import InputError
from lossworks.comparison.candidates import OUTSIDE
from lossworks.comparison.handover.model import Model
from lossworks.comparison.handover.outcome import Outcome
from lossworks.comparison.handover.recipe import recipe
from lossworks.comparison.handover.reporting import answer, report_data
from lossworks.comparison.read.tables import load
from lossworks.comparison.splits import derive_seed, inner_split
from lossworks.comparison.train.engine import one_thread, train
from lossworks.comparison.train.jobs import Job
from lossworks.report import render
from lossworks.runs.files import whole, whole_folder


class Comparison(Outcome):
    """The result of :func:`lossworks.compare`: the ranking, the trained model, the report and the run folder.

    Attributes:
        plan: The plan of what was trained.
        findings: What was found in the data, in plain words.
        judgement: The ranking with the tests behind it.
        results: One row for each trained model: its setting, fold and repeat, whether its setting was chosen, and every
            metric.
        partial: The reason why the run is incomplete, or None if it is complete.
    """

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        return answer(self.plan, self.ranking, self.winner)

    def model(self) -> Model:
        """The winner, trained on all rows except inner rows, which stop the training and set the temperature."""
        return self._model

    @cached_property
    def _model(self) -> Model:
        candidate, dataset, task = self.candidate(self.winner), self.dataset, self.plan.task
        setting = self.chosen_setting(self.winner)
        everything = np.arange(len(dataset.target))
        seed = derive_seed(self.plan.seed, "final", candidate.name)
        fit, inner = inner_split(everything, task.strata(dataset.target), seed)
        facts = task.training_facts(dataset.target, fit, len(dataset.classes), len(dataset.group_names))
        job = Job(
            objective=candidate.objective(setting, facts),
            fit=torch.from_numpy(fit),
            inner=torch.from_numpy(inner),
            seed=seed,
            contest=0,
        )
        group = None if dataset.group is None else torch.from_numpy(dataset.group)
        trained = train(
            self.x,
            task.tensor(dataset.target),
            [job],
            self.architecture,
            self.plan.training,
            self.plan.metric,
            task=task,
            group=group,
            device=self.device,
        )
        with one_thread():
            outputs = trained.outputs(0, torch.from_numpy(inner)).cpu()
            if not bool(outputs.isfinite().all()):
                raise InputError(
                    f"the model of {candidate.name} that was trained on all rows diverged, though those of the folds "
                    "did not: choose another --seed, or in Python a smaller training=Training(lr=...)"
                )
            temperature = task.calibration((outputs, dataset.target[inner]))
        return Model(
            task=task,
            target_name=dataset.target_name,
            classes=dataset.classes,
            objective=candidate.name,
            setting=candidate.setting(setting),
            temperature=1.0 if temperature is None else temperature,
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
        """Write the run folder with report, results, model and recipe: either all of them or none."""
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
        """The path from which the recipe reads the data, or None for the embedded data.

        It is the user's file, or a copy in the run folder if the data did not come from a file.
        """
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
        """The result as JSON values, for scripts."""
        return {
            "answer": self.answer,
            "winner": self.winner,
            "metric": self.plan.metric.name,
            "partial": self.partial,
            "seconds": round(self.seconds, 1),
            "ranking": [_finite(row) for row in self.ranking.to_dicts()],
            "groups": None if self.groups is None else [_finite(row) for row in self.groups.to_dicts()],
            "findings": [{"level": f.level, "key": f.key, "text": f.text} for f in self.findings],
            "outside": OUTSIDE,
        }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None in place of NaN and infinities, which JSON does not have."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
