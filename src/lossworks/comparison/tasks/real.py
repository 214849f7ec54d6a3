"""The real task: the target is a real value."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from lossworks.checks import InputError
from lossworks.comparison.models.boosting import boosted_values
from lossworks.comparison.models.heads import Values
from lossworks.comparison.models.scaling import TargetScale
from lossworks.comparison.read.columns import MOST_CLASSES_OF_NUMBERS
from lossworks.comparison.tasks.base import Portraits, RecipeLines, Target, Task
from lossworks.metrics.registry import METRICS
from lossworks.report.panels import Cloud, Intervals, Panel
from lossworks.report.text import percent
from lossworks.roles import REAL, BatchLoss, Kind, Loss

__all__ = ["Real", "bins_of"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The levels of the quantiles of the residuals that the report shows."""
PAIRS = 40
"""How many predictions of each model are kept for the report, which draws at most ten times as many per objective."""


class Real(Task):
    """Real task: a target of real values, which losses see standardised by the training rows' mean and deviation."""

    name = "real"
    title = "real-valued"
    order = 10
    kinds: ClassVar[tuple[Kind, ...]] = (REAL,)
    reference = "SquaredLoss"
    metrics = (METRICS["rmse"], METRICS["mae"], METRICS["r2"])
    troubles = ("outliers", "heavy tails", "real targets by classification")
    spreads = True

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """Recognise numbers that cannot be class labels: some are not whole, or too many are different."""
        if not labels.dtype.is_numeric():
            return False
        whole = not labels.dtype.is_float() or bool((distinct == distinct.round(0)).all())
        # A few different whole numbers are taken for labels: at most 20 of them, and at most 5 % of the number of rows,
        # or up to 10 if there are 5 rows for each.
        rows = len(labels)
        return not whole or len(distinct) > min(MOST_CLASSES_OF_NUMBERS, max(2, min(10, rows // 5), rows // 20))

    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """Read the values, and refuse a target that does not hold numbers."""
        if not labels.dtype.is_numeric():
            held = "text" if labels.dtype == pl.String else "booleans"
            raise InputError(f"{where} holds {held}, so it is not {self.name}: leave out --task or task=")
        return Target(labels.cast(pl.Float64).to_numpy().copy())

    def note(self, labels: pl.Series, distinct: pl.Series) -> str | None:
        """Note that at most 100 different whole numbers were read as amounts, and how to read them as classes."""
        if labels.dtype.is_float() or len(distinct) > 100:
            return None
        return (
            f"the target's {len(distinct)} different numbers were taken for amounts; --task multiclass takes them as "
            f"classes"
        )

    def described(self, target: Target) -> str:
        """Describe the target as a real value."""
        return "a real value"

    def facts(self, values: np.ndarray, num_classes: int) -> dict[str, Any]:
        """The range of the standardised target with a margin, as ``v_min`` and ``v_max``."""
        centre, scale = float(values.mean()), float(values.std()) or 1.0
        low, high = (float(values.min()) - centre) / scale, (float(values.max()) - centre) / scale
        room = 0.1 * (high - low) or 1.0
        # Bins beyond six standard deviations would hold almost no rows; the outermost bins take the values there.
        return {"v_min": torch.tensor(max(low - room, -6.0)), "v_max": torch.tensor(min(high + room, 6.0))}

    def scale(self, kind: Kind, y: Tensor, rows: Tensor) -> TargetScale | None:
        """The mean and standard deviation of the target over the training rows."""
        return TargetScale.fit(y, rows)

    def head(self, loss: Loss | BatchLoss, outputs: int, scale: TargetScale | None) -> nn.Module:
        """The head that turns outputs into values ``(n,)`` in the target's own unit."""
        return Values.of(bins_of(loss, outputs), scale or TargetScale())

    def empty_head(self, kind: Kind, outputs: int) -> nn.Module:
        """A head of the same form with placeholder values."""
        return Values.of(torch.zeros(outputs), TargetScale())

    def predicted(self, outputs: Tensor, temperature: float = 1.0) -> np.ndarray:
        """The head's outputs as float64 values ``(n,)``."""
        values: np.ndarray = outputs.double().numpy()
        return values

    def portrait(self, outputs: Tensor, temperature: float, values: np.ndarray) -> dict[str, Any]:
        """The quantiles of the errors, and some pairs of an actual and a predicted value."""
        predicted = self.predicted(outputs)
        shown = np.linspace(0, len(values) - 1, min(PAIRS, len(values))).astype(int)
        return {
            "quantiles": [float(q) for q in np.quantile(predicted - values, LEVELS)],
            "pairs": [(float(values[i]), float(predicted[i])) for i in shown],
        }

    def outside(self, table: np.ndarray, target: Target, train: np.ndarray, test: np.ndarray, seed: int) -> Tensor:
        """The values ``(m,)`` that gradient boosting predicts for the test rows."""
        return boosted_values(table, target.values, train, test, seed)

    def panels(self, portraits: Portraits, target: Target, reference: str) -> list[Panel]:
        """Two panels: the quantiles of the errors, and predicted values against actual ones."""
        levels = ", ".join(percent(level) for level in LEVELS)
        errors = Intervals(
            name="residuals",
            title="Errors",
            lede=[
                "Predicted minus actual on the test rows: the dot is the median, the lines join the quantiles "
                f"{levels}."
            ],
            levels=LEVELS,
            quantiles={
                name: np.mean([one["quantiles"] for one in shown], axis=0).tolist() for name, shown in portraits.items()
            },
            ends=("too low", "too high"),
        )
        cloud = Cloud(
            name="predictions",
            title="Predicted over actual",
            lede=["Some of the test rows: what was predicted (upwards) for what was observed (rightwards)."],
            pairs={name: _pairs(shown) for name, shown in portraits.items()},
            what="predicted over actual",
        )
        return [errors, cloud]

    def recipe(self, loss: Loss | BatchLoss) -> RecipeLines:
        """The lines that standardise the target and measure the mean squared error."""
        return RecipeLines(
            target="values = torch.from_numpy(dataset.target).float()\n"
            "y = (values - values[fit].mean()) / values[fit].std()  # the losses are made for targets of unit scale",
            error_name="mean squared error (standardised)",
            error="(predicted - y[inner]).square().mean().item()",
            facts={
                "v_min": "max(float(y[fit].min()) - 0.5, -6.0)",
                "v_max": "min(float(y[fit].max()) + 0.5, 6.0)",
            },
        )


def bins_of(loss: Loss | BatchLoss, outputs: int) -> Tensor:
    """The standardised value of each bin of a loss over bins, which is what the loss predicts if that bin has it all.

    For a loss with one output it is a single zero, which is not read.
    """
    if isinstance(loss, Loss) and outputs > 1:
        return loss.predict(1e4 * torch.eye(outputs)).detach()
    return torch.zeros(outputs)


def _pairs(portraits: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(actual, value) for one in portraits for actual, value in one["pairs"]][: 10 * PAIRS]
