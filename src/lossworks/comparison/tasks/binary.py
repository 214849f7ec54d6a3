"""The binary task: the target is one of two classes."""

import polars as pl

from lossworks.checks import InputError, listed
from lossworks.comparison.read.columns import as_text
from lossworks.comparison.tasks.base import Target
from lossworks.comparison.tasks.classes import ClassTask
from lossworks.metrics.registry import METRICS
from lossworks.roles import BINARY, CLASSES

__all__ = ["Binary"]


class Binary(ClassTask):
    """Binary task: a target of two classes. It also takes losses on a single score, and metrics that rank rows."""

    name = "binary"
    title = "one of two classes"
    order = 20
    kinds = (CLASSES, BINARY)
    metrics = (*ClassTask.metrics, METRICS["auroc"], METRICS["average_precision"])

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """Recognise a target that has exactly two different values."""
        return len(distinct) == 2

    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """Read the classes, and refuse a target that does not have exactly two."""
        if len(distinct) != 2:
            raise InputError(
                f"{where} has {len(distinct)} classes ({listed(as_text(distinct).to_list(), 4)}), so it is not binary"
            )
        return super().read(labels, distinct, where)
