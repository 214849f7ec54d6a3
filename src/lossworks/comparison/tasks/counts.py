"""The counts task: the target says how often something happened."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from scipy.stats import poisson
from torch import Tensor, nn

from lossworks.checks import InputError
from lossworks.comparison.models.boosting import boosted_values
from lossworks.comparison.models.heads import PositiveValues, Rates
from lossworks.comparison.models.scaling import TargetScale
from lossworks.comparison.tasks.base import Portraits, RecipeLines, Target
from lossworks.comparison.tasks.real import Real, bins_of
from lossworks.metrics.registry import METRICS
from lossworks.report.panels import Bar, Bars, Dot, Key, Line, Lines, Panel
from lossworks.report.text import number
from lossworks.roles import COUNTS, REAL, BatchLoss, Kind, Loss

__all__ = ["Counts"]

MOST = 12
"""The report shows how often each count up to this one occurs, unless over a tenth of the rows have larger counts."""
BANDS = 10
"""The number of bands of the expected count in which the report compares it with the observed count."""


class Counts(Real):
    """Counts task: a target of non-negative whole numbers, for which expected counts are predicted.

    Losses for counts see the target in units of its mean over the training rows, and their output is the logarithm of
    the expected count in that unit. Losses for real values can be trained too. Their predictions are raised to at least
    1 % of the mean count, because an expected count is positive.
    """

    name = "counts"
    title = "a count"
    order = 40
    kinds: ClassVar[tuple[Kind, ...]] = (COUNTS, REAL)
    reference = "PoissonLoss"
    metrics = (METRICS["poisson_deviance"], METRICS["rmse"], METRICS["mae"])
    troubles = ("baseline", "outliers", "heavy tails")

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """Recognise no target: only the user can tell counts from amounts and from labels."""
        return False

    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """Read the values, and refuse a target that has a negative number or one that is not whole."""
        target = super().read(labels, distinct, where)
        wrong = (target.values < 0) | (target.values != np.round(target.values))
        if wrong.any():
            raise InputError(
                f"{where} has {target.values[wrong][0]:g}, so it is not counts, which are 0 or positive whole numbers: "
                f"use --task real"
            )
        return target

    def described(self, target: Target) -> str:
        """Describe the target as a count."""
        return "a count"

    def scale(self, kind: Kind, y: Tensor, rows: Tensor) -> TargetScale | None:
        """Standardise the target for losses for real values, and divide it by its mean for losses for counts."""
        if kind.scalable:
            return super().scale(kind, y, rows)
        mean = float(y[rows].double().mean())
        return TargetScale(0.0, mean if mean > 0 else 1.0)

    def head(self, loss: Loss | BatchLoss, outputs: int, scale: TargetScale | None) -> nn.Module:
        """The head that turns outputs into expected counts ``(n,)``."""
        scale = scale or TargetScale()
        return PositiveValues.of(bins_of(loss, outputs), scale) if loss.kind.scalable else Rates.of(scale)

    def empty_head(self, kind: Kind, outputs: int) -> nn.Module:
        """A head of the same form with placeholder values."""
        scale = TargetScale()
        return PositiveValues.of(torch.zeros(outputs), scale) if kind.scalable else Rates.of(scale)

    def portrait(self, outputs: Tensor, temperature: float, values: np.ndarray) -> dict[str, Any]:
        """Add to a real target's portrait how often each count occurs and is expected, and bands of expected counts."""
        expected = self.predicted(outputs)
        counts = np.arange(MOST + 1)
        bands = np.array_split(np.argsort(expected, kind="stable"), min(BANDS, len(values)))
        return super().portrait(outputs, temperature, values) | {
            "rows": len(values),
            "observed": np.bincount(values[values <= MOST].astype(np.int64), minlength=MOST + 1).tolist(),
            "occurring": poisson.pmf(counts[:, None], expected).sum(axis=1).tolist(),
            "bands": [[float(expected[rows].sum()), float(values[rows].sum()), len(rows)] for rows in bands],
        }

    def outside(self, table: np.ndarray, target: Target, train: np.ndarray, test: np.ndarray, seed: int) -> Tensor:
        """The expected counts ``(m,)`` of the test rows, by boosted trees that minimise the Poisson deviance."""
        return boosted_values(table, target.values, train, test, seed, loss="poisson")

    def panels(self, portraits: Portraits, target: Target, reference: str) -> list[Panel]:
        """Add to a real target's panels the observed counts against the expected, and how often each count occurs.

        The latter is left out if more than a tenth of the rows have counts above 12.
        """
        bands = Lines(
            name="bands",
            title="Observed over expected",
            lede=[
                f"Each model's test rows in {BANDS} bands by the count that it expects: the mean that was observed "
                "(upwards) for the mean that was expected (rightwards). On the diagonal, expectations can be taken at "
                "their word."
            ],
            figures={name: [Line("after", _bands(shown))] for name, shown in portraits.items()},
            summaries={name: f"{name}: observed over expected counts" for name in portraits},
            unit=False,
        )
        if np.mean(target.values <= MOST) < 0.9:
            return [bands, *super().panels(portraits, target, reference)]
        occurring = Bars(
            name="occurring",
            title="How often each count occurs",
            lede=[
                *(
                    "The share of the test rows that have each count, as it was ",
                    Key("observed", "observed"),
                    " and as ",
                ),
                *(
                    Key("expected", "dot-after"),
                    " of Poisson distributions around the predictions. A bar that is higher ",
                ),
                "at 0 and at large counts says that the counts vary more than such distributions do.",
            ],
            figures={name: _occurring(shown) for name, shown in portraits.items()},
        )
        return [bands, occurring, *super().panels(portraits, target, reference)]

    def recipe(self, loss: Loss | BatchLoss) -> RecipeLines:
        """The lines that divide the target by its mean and measure the Poisson deviance, for a loss for counts."""
        if loss.kind.scalable:
            return super().recipe(loss)
        return RecipeLines(
            target="values = torch.from_numpy(dataset.target).float()\n"
            "y = values / values[fit].mean()  # in units of the mean count",
            error_name="Poisson deviance (of counts in units of their mean)",
            error="2 * (torch.xlogy(y[inner], y[inner] / predicted) - y[inner] + predicted).mean().item()",
        )


def _bands(portraits: Sequence[Mapping[str, Any]]) -> list[Dot]:
    fewest = min(len(one["bands"]) for one in portraits)
    sums = np.sum([one["bands"][:fewest] for one in portraits], axis=0).tolist()
    return [
        Dot(
            expected / rows,
            observed / rows,
            rows,
            f"expected {number(expected / rows)}, observed {number(observed / rows)}, {number(rows, 0)} rows",
        )
        for expected, observed, rows in sums
    ]


def _occurring(portraits: Sequence[Mapping[str, Any]]) -> list[Bar]:
    rows = sum(one["rows"] for one in portraits)
    observed, expected = (np.sum([one[key] for one in portraits], axis=0) / rows for key in ("observed", "occurring"))
    return [
        Bar(str(count), seen, due)
        for count, (seen, due) in enumerate(zip(observed.tolist(), expected.tolist(), strict=True))
    ]
