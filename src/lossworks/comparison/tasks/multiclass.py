"""One of more than two classes."""

import polars as pl

from lossworks.comparison.tasks.classes import ClassTask
from lossworks.roles import CLASSES

__all__ = ["Multiclass"]


class Multiclass(ClassTask):
    """One of several classes: texts, booleans, and whole numbers of which no other task says that they are amounts."""

    name = "multiclass"
    title = "one of several classes"
    order = 30
    kinds = (CLASSES,)

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """See :class:`Task`."""
        return True

    def note(self, labels: pl.Series, distinct: pl.Series) -> str | None:
        """See :class:`Task`."""
        if not labels.dtype.is_numeric():
            return None
        return f"the target's whole numbers were taken for {len(distinct)} classes; --task real takes them as amounts"
