"""The multiclass task: the target is one of several classes."""

import polars as pl

from lossworks.comparison.tasks.classes import ClassTask
from lossworks.roles import CLASSES

__all__ = ["Multiclass"]


class Multiclass(ClassTask):
    """Multiclass task: a target of several classes, given as texts, as booleans or as a few different whole numbers."""

    name = "multiclass"
    title = "one of several classes"
    order = 30
    kinds = (CLASSES,)

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """Recognise every target that the tasks before this one did not recognise."""
        return True

    def note(self, labels: pl.Series, distinct: pl.Series) -> str | None:
        """Note that whole numbers were read as classes, and how to read them as amounts."""
        if not labels.dtype.is_numeric():
            return None
        return f"the target's whole numbers were taken for {len(distinct)} classes; --task real takes them as amounts"
