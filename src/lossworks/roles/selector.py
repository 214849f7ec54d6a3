"""The role of a selector: which rows to train on, or how far each row is believed."""

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["Selector"]


class Selector:
    """A rule that looks at what is known of the rows, and says which of them to use or how far to believe each.

    It is called on columns with one entry a row, and answers with one entry a row (a mask, a weight, a label) or with
    the numbers of the rows that it picked. Rows in another order get the same answers in that order. Rows of which the
    same is known get the same answer; where only some of them can be picked, they are the first.

    Class attributes:
        rows: The arguments of the call that have one entry a row.
        picks: Whether the answer is the numbers of the rows that were picked, and not one entry a row.
        stochastic: Whether it draws random numbers.
    """

    role: ClassVar[str] = "selector"
    papers: ClassVar[tuple[str, ...]] = ()
    helps: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    modes: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[tuple[str, ...]] = ("losses",)
    picks: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
