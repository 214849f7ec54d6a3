"""The panels in which a task shows its predictions, in plain types; each form of panel is one class.

Mappings by objective use the names in the ranking; an objective that a mapping lacks is left out of that panel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Bar", "Bars", "Cloud", "Dot", "Intervals", "Key", "Line", "Lines", "Panel", "Table", "Words"]


@dataclass(frozen=True)
class Key:
    """Words in the style of what they explain: ``up``, ``down``, ``dot-before``, ``dot-after``, ``bold`` or plain."""

    text: str
    style: str


Words = Sequence[str | Key]
"""A sentence in pieces; nothing in it is markup."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One section of the report.

    Attributes:
        name: Its anchor in the page, one word.
        title: Its heading.
        lede: The sentences that say what the panel shows and how to read it.
    """

    name: str
    title: str
    lede: Words


@dataclass(frozen=True, kw_only=True)
class Table(Panel):
    """A table of shares with one column per objective, coloured by the change from the reference.

    Attributes:
        heading: The heading of the rows' names, such as "Class".
        several: The word for several rows, such as "classes".
        rows: The names of the rows.
        columns: For each objective, one share in [0, 1] per row; None if there is no share.
        counts: The number of rows of the data that each row stands for, if it is known.
        strongest: The change that is drawn in full colour.
    """

    heading: str
    several: str
    rows: Sequence[str]
    columns: Mapping[str, Sequence[float | None]]
    counts: Sequence[int] | None = None
    strongest: float = 0.3


@dataclass(frozen=True)
class Dot:
    """A point of a line, drawn as large as its share of the line's weight, with the text of its tooltip."""

    x: float
    y: float
    weight: float
    tip: str


@dataclass(frozen=True)
class Line:
    """Points that are joined, in the colour of a style: ``before`` or ``after``."""

    style: str
    dots: Sequence[Dot]


@dataclass(frozen=True, kw_only=True)
class Lines(Panel):
    """A small plot for each objective, with a few lines of dots over the diagonal.

    Attributes:
        figures: The lines of each objective.
        notes: The words beside the name of each objective.
        summaries: The sentence that a screen reader says for each objective.
        unit: Whether both axes go from 0 to 1; otherwise both have the same scale, which holds all dots.
    """

    figures: Mapping[str, Sequence[Line]]
    summaries: Mapping[str, str]
    notes: Mapping[str, Sequence[Words]] = field(default_factory=dict)
    unit: bool = True


@dataclass(frozen=True, kw_only=True)
class Intervals(Panel):
    """A row for each objective, with nested lines between quantiles around a dot at the median, on one scale with zero.

    Attributes:
        levels: The levels of the quantiles in [0, 1], in ascending order.
        quantiles: The quantiles of each objective, one per level.
        ends: What values to the left and to the right of zero mean.
    """

    levels: Sequence[float]
    quantiles: Mapping[str, Sequence[float]]
    ends: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Cloud(Panel):
    """A small plot for each objective, with a faint dot for each pair over the diagonal; all have the same scale.

    Attributes:
        pairs: The pairs (x, y) of each objective.
        what: The words for a screen reader that say what the dots are.
    """

    pairs: Mapping[str, Sequence[tuple[float, float]]]
    what: str


@dataclass(frozen=True)
class Bar:
    """One bar of what was observed and the dot of what was expected, with a label that says what they stand for."""

    label: str
    observed: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class Bars(Panel):
    """A small plot for each objective, with bars for the observed shares and dots for those that the model expects.

    Attributes:
        figures: The bars of each objective, from left to right.
    """

    figures: Mapping[str, Sequence[Bar]]
