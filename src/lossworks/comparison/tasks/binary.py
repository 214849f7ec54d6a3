"""One of two classes."""

import polars as pl

from lossworks.checks import InputError
from lossworks.comparison.read.columns import as_text
from lossworks.comparison.read.tables import listed
from lossworks.comparison.tasks.base import Target
from lossworks.comparison.tasks.classes import ClassTask
from lossworks.metrics.registry import METRICS
from lossworks.roles import BINARY, CLASSES

__all__ = ["Binary"]


class Binary(ClassTask):
    """One of two classes, for which losses of one score fit too, and metrics that rank the rows by it."""

    name = "binary"
    title = "one of two classes"
    order = 20
    kinds = (CLASSES, BINARY)
    metrics = (*ClassTask.metrics, METRICS["auroc"], METRICS["average_precision"])

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """See :class:`Task`."""
        return len(distinct) == 2

    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """See :class:`Task`."""
        if len(distinct) != 2:
            raise InputError(
                f"{where} has {len(distinct)} classes ({listed(as_text(distinct).to_list(), 4)}), so it is not binary"
            )
        return super().read(labels, distinct, where)
