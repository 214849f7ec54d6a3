"""Positive amounts, whose spread grows with their mean: a task as a stranger would add it, one file and no more."""

import numpy as np
import torch
from sklearn.metrics import mean_gamma_deviance

from lossworks.checks import InputError
from lossworks.comparison.models.boosting import boosted_values
from lossworks.comparison.models.heads import PositiveValues, Rates
from lossworks.comparison.models.scaling import TargetScale
from lossworks.comparison.tasks.base import RecipeLines, Target, Task
from lossworks.metrics.registry import METRICS, Metric
from lossworks.report.panels import Intervals
from lossworks.roles import COUNTS, REAL


def _deviance(values, target):
    return float(mean_gamma_deviance(target, values))


def _score(outputs, target, mask):
    values = outputs[..., 0].clamp_min(1e-6)
    each = 2 * (target / values - 1 - (target / values).log())
    return -torch.where(mask, each, 0).sum(dim=1) / mask.sum(dim=1)


class Amounts(Task):
    """Positive amounts, judged by the gamma deviance."""

    name = "amounts"
    title = "an amount"
    order = 5
    kinds = (COUNTS, REAL)
    reference = "PoissonLoss"
    metrics = (Metric("gamma_deviance", "gamma deviance", _deviance, False, False, _score), METRICS["mae"])
    troubles = ("heavy tails",)

    def recognises(self, labels, distinct):
        return labels.name == "price"

    def read(self, labels, distinct, where):
        if not labels.dtype.is_numeric() or not (labels > 0).all():
            raise InputError(f"{where} must hold numbers > 0")
        return Target(labels.cast(float).to_numpy().copy())

    def described(self, target):
        return "an amount of money"

    def scale(self, kind, y, rows):
        return TargetScale.fit(y, rows) if kind.scalable else TargetScale(0.0, float(y[rows].mean()))

    def head(self, loss, outputs, scale):
        return PositiveValues.of(torch.zeros(outputs), scale) if loss.kind.scalable else Rates.of(scale)

    def empty_head(self, kind, outputs):
        return PositiveValues.of(torch.zeros(outputs), TargetScale()) if kind.scalable else Rates.of(TargetScale())

    def predicted(self, outputs, temperature=1.0):
        return outputs.double().numpy()

    def portrait(self, outputs, temperature, values):
        ratios = np.log(self.predicted(outputs) / values)
        return {"ratios": np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()}

    def outside(self, table, target, train, test, seed):
        return boosted_values(table, target.values, train, test, seed, loss="gamma")

    def panels(self, portraits, target, reference):
        quantiles = {
            name: np.mean([one["ratios"] for one in shown], axis=0).tolist() for name, shown in portraits.items()
        }
        return [
            Intervals(
                name="ratios",
                title="How many times too much",
                lede=["The logarithm of predicted over actual."],
                levels=(0.25, 0.5, 0.75),
                quantiles=quantiles,
                ends=("too little", "too much"),
            )
        ]

    def recipe(self, loss):
        return RecipeLines(
            target="y = torch.from_numpy(dataset.target).float()\ny = y / y[fit].mean()",
            error_name="mean absolute error",
            error="(predicted - y[inner]).abs().mean().item()",
        )
