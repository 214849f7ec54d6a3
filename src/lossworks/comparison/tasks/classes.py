"""The base class of the tasks whose target is a class."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from lossworks.calibrate import TemperatureScaling
from lossworks.comparison.models.boosting import boosted_classes
from lossworks.comparison.models.scaling import TargetScale
from lossworks.comparison.read.columns import as_text
from lossworks.comparison.tasks.base import Portraits, RecipeLines, Target, Task
from lossworks.metrics import expected_calibration_error, per_class_recall, reliability_bins
from lossworks.metrics.registry import METRICS, Metric
from lossworks.report.panels import Dot, Key, Line, Lines, Panel, Table
from lossworks.report.text import number, percent
from lossworks.roles import BatchLoss, Kind, Loss

__all__ = ["ClassTask", "class_probabilities"]

IMBALANCED = 3.0
"""The ratio of the largest class to the smallest from which the default metric weighs all classes equally."""

Bins = list[tuple[float, float, int]]


def class_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits ``(n, C)`` into probabilities ``(n, C)``, or the scores ``(n,)`` of class 1 into ``(n, 2)``."""
    if logits.ndim == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    # The largest logit is taken off first, so that no temperature, however small, makes it infinite.
    return ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)


class ClassTask(Task):
    """Base class of the tasks whose target is a class; they predict the classes' probabilities at a temperature."""

    reference = "CrossEntropyLoss"
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        METRICS[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
    )
    troubles = ("noisy labels", "hard examples", "calibration")
    has_classes = True
    dtype = torch.int64
    splitting = ", each class in its share"
    calibrating = (
        "One temperature a model is fitted on the same inner rows before probabilities are scored, so that losses that "
        "do not estimate probabilities are judged fairly on log-loss and calibration error."
    )

    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """Read the classes, in the order of their values."""
        codes = labels.replace_strict(distinct, pl.Series(range(len(distinct)), dtype=pl.Int64), return_dtype=pl.Int64)
        return Target(codes.to_numpy().copy(), tuple(as_text(distinct).to_list()))

    def described(self, target: Target) -> str:
        """Say how many classes there are."""
        return f"{len(target.classes)} classes"

    def strata(self, values: np.ndarray) -> np.ndarray | None:
        """Take the class of each row as its stratum."""
        return values

    def facts(self, values: np.ndarray, num_classes: int) -> dict[str, Any]:
        """The number of classes, and how many training rows each class has."""
        counts = np.bincount(values, minlength=num_classes)
        return {"class_counts": torch.tensor(counts, dtype=torch.float32), "num_classes": num_classes}

    def outputs(self, loss: Loss | BatchLoss, y: Tensor) -> int:
        """The number of outputs that the loss needs for this number of classes."""
        return loss.output_size(int(y.max()) + 1)

    def head(self, loss: Loss | BatchLoss, outputs: int, scale: TargetScale | None) -> nn.Module:
        """The head that leaves logits ``(n, C)`` unchanged and flattens scores to ``(n,)``."""
        return self.empty_head(loss.kind, outputs)

    def empty_head(self, kind: Kind, outputs: int) -> nn.Module:
        """A head of the same form; it has no values."""
        return nn.Flatten(0) if kind.flat else nn.Identity()

    def default_metric(self, values: np.ndarray) -> Metric:
        """Accuracy, or balanced accuracy if the classes are imbalanced."""
        counts = np.bincount(values)
        return METRICS["balanced_accuracy" if counts.max() >= IMBALANCED * counts.min() else "accuracy"]

    def calibration(self, inner: tuple[Tensor, np.ndarray] | None) -> float | None:
        """The temperature that minimises the log-loss on the inner rows, or 1 if there are none."""
        if inner is None:
            return 1.0
        outputs, values = inner
        return float(TemperatureScaling().fit(outputs.double(), torch.from_numpy(values)).temperature)

    def predicted(self, outputs: Tensor, temperature: float = 1.0) -> np.ndarray:
        """The class probabilities ``(n, C)`` at this temperature."""
        probabilities: np.ndarray = class_probabilities(outputs.double(), temperature).numpy()
        return probabilities

    def portrait(self, outputs: Tensor, temperature: float, values: np.ndarray) -> dict[str, Any]:
        """The recall of each class, and the reliability before and after calibration."""
        before, after = (self.predicted(outputs, t) for t in (1.0, temperature))
        return {
            "temperature": temperature,
            "ece": [expected_calibration_error(before, values), expected_calibration_error(after, values)],
            "recall": [None if np.isnan(r) else float(r) for r in per_class_recall(after, values)],
            "reliability": {"before": _bins(before, values), "after": _bins(after, values)},
        }

    def outside(self, table: np.ndarray, target: Target, train: np.ndarray, test: np.ndarray, seed: int) -> Tensor:
        """The log-probabilities ``(m, C)`` that gradient boosting predicts for the test rows."""
        return boosted_classes(table, target.values, train, test, len(target.classes), seed)

    def probabilities(self, outputs: Tensor, temperature: float, name: str) -> np.ndarray:
        """The class probabilities ``(n, C)`` at this temperature."""
        return self.predicted(outputs, temperature)

    def answers(self, predicted: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """The most probable label of each row ``(n,)``, as text."""
        return np.asarray(classes)[predicted.argmax(axis=1)]

    def frame(self, predicted: np.ndarray, name: str, classes: Sequence[str]) -> pl.DataFrame:
        """A table with the predicted label, and with a column of probabilities for each class."""
        columns = {f"probability_{label}": predicted[:, k] for k, label in enumerate(classes)}
        return pl.DataFrame({f"predicted_{name}": self.answers(predicted, classes), **columns})

    def panels(self, portraits: Portraits, target: Target, reference: str) -> list[Panel]:
        """Two panels: the recall of each class, and the reliability of the probabilities."""
        recall = Table(
            name="recall",
            title="Recall of each class",
            lede=[
                f"Of a hundred rows of the class, how many were found. Colour is the change from {reference}: ",
                *(Key("more found", "up"), ", ", Key("fewer found", "down"), "."),
            ],
            heading="Class",
            several="classes",
            rows=target.classes,
            columns={name: _mean_recall(shown, len(target.classes)) for name, shown in portraits.items()},
            counts=np.bincount(target.values, minlength=len(target.classes)).tolist(),
        )
        reliability = Lines(
            name="reliability",
            title="Reliability",
            lede=[
                "How often a prediction is right (upwards) when the model is this sure of it (rightwards). On the "
                "diagonal, confidence can be taken at its word. ",
                *(Key("before", "dot-before"), " and ", Key("after", "dot-after")),
                " one temperature, fitted on rows apart from the test, has divided the logits. ECE, the calibration "
                "error, is the mean distance from the diagonal.",
            ],
            figures={name: _reliability(shown) for name, shown in portraits.items()},
            notes={name: _reliability_notes(shown) for name, shown in portraits.items()},
            summaries={name: f"{name}: {_calibration_errors(shown)}" for name, shown in portraits.items()},
        )
        return [recall, reliability]

    def recipe(self, loss: Loss | BatchLoss) -> RecipeLines:
        """The lines that take the class codes as targets and measure the error rate."""
        wrong = "((predicted > 0.5) != y[inner].bool())" if loss.kind.flat else "(predicted.argmax(1) != y[inner])"
        return RecipeLines(
            target="y = torch.from_numpy(dataset.target)",
            error_name="error rate",
            error=f"{wrong}.float().mean().item()",
            facts={
                "class_counts": "torch.bincount(y[fit], minlength=len(dataset.classes)).float()",
                "num_classes": "len(dataset.classes)",
            },
        )


def _bins(probabilities: np.ndarray, values: np.ndarray) -> Bins:
    """For each bin the sum of the confidences, the number of right rows and of rows; models are summed up by these."""
    bins = reliability_bins(probabilities, values)
    return [
        (float(confidence * count), float(right * count), int(count)) if count else (0.0, 0.0, 0)
        for confidence, right, count in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
    ]


def _mean_recall(portraits: Sequence[Mapping[str, Any]], num_classes: int) -> list[float | None]:
    each = [[found for one in portraits if (found := one["recall"][k]) is not None] for k in range(num_classes)]
    return [float(np.mean(known)) if known else None for known in each]


def _reliability(portraits: Sequence[Mapping[str, Any]]) -> list[Line]:
    lines = []
    for moment in ("before", "after"):
        confidence, right, count = np.sum([one["reliability"][moment] for one in portraits], axis=0).T
        dots = [
            Dot(
                c / n, a / n, n, f"{moment}: confidence {percent(c / n)}, right {percent(a / n)} of {number(n, 0)} rows"
            )
            for c, a, n in zip(confidence.tolist(), right.tolist(), count.tolist(), strict=True)
            if n
        ]
        lines.append(Line(moment, dots))
    return lines


def _mean_errors(portraits: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    before, after = np.mean([one["ece"] for one in portraits], axis=0).tolist()
    return number(before, 3), number(after, 3)


def _reliability_notes(portraits: Sequence[Mapping[str, Any]]) -> list[list[str | Key]]:
    before, after = _mean_errors(portraits)
    temperature = float(np.median([one["temperature"] for one in portraits]))
    return [[f"ECE {before} → ", Key(after, "bold")], [f"T = {number(temperature, 2)}"]]


def _calibration_errors(portraits: Sequence[Mapping[str, Any]]) -> str:
    before, after = _mean_errors(portraits)
    return f"calibration error {before} before, {after} after"
