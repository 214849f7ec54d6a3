"""What a task shows of its predictions, in plain types: each form of panel is one class, whatever it shows.

Mappings by objective use the names of the ranking; an objective that one of them lacks is left out of that panel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Bar", "Bars", "Cloud", "Dot", "Intervals", "Key", "Line", "Lines", "Panel", "Table", "Words"]


@dataclass(frozen=True)
class Key:
    """Words in the colour of what they explain: ``up``, ``down``, ``dot-before``, ``dot-after``, ``bold`` or plain."""

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
        lede: What it shows and how it is read.
    """

    name: str
    title: str
    lede: Words


@dataclass(frozen=True, kw_only=True)
class Table(Panel):
    """Shares in a table, one row each and one column an objective, coloured by the change from the reference.

    Attributes:
        heading: What a row is, such as "Class", and ``several`` for more than one.
        rows: What each row is called.
        columns: By objective, one share in [0, 1] a row; None where there is none.
        counts: How many rows of the data each row stands for, if that is known.
        strongest: The change that has the full colour.
    """

    heading: str
    several: str
    rows: Sequence[str]
    columns: Mapping[str, Sequence[float | None]]
    counts: Sequence[int] | None = None
    strongest: float = 0.3


@dataclass(frozen=True)
class Dot:
    """A point of a line, as large as its share of the weight, with what a reader is told who points at it."""

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
    """A small plot an objective, with a few lines of dots over the diagonal.

    Attributes:
        figures: By objective, the lines.
        notes: By objective, what stands beside its name.
        summaries: By objective, the sentence that a screen reader says.
        unit: Whether both axes go from 0 to 1; otherwise both have one scale on which all dots lie.
    """

    figures: Mapping[str, Sequence[Line]]
    summaries: Mapping[str, str]
    notes: Mapping[str, Sequence[Words]] = field(default_factory=dict)
    unit: bool = True


@dataclass(frozen=True, kw_only=True)
class Intervals(Panel):
    """A row an objective, with nested lines between quantiles around a dot at the median, on one scale with zero.

    Attributes:
        levels: Which quantiles, rising, in [0, 1].
        quantiles: By objective, one value a level.
        ends: What lies on the left and on the right of zero.
    """

    levels: Sequence[float]
    quantiles: Mapping[str, Sequence[float]]
    ends: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Cloud(Panel):
    """A small plot an objective, with a faint dot for each pair over the diagonal; all have one scale.

    Attributes:
        pairs: By objective, (x, y) of each dot.
        what: What the dots are, for a screen reader.
    """

    pairs: Mapping[str, Sequence[tuple[float, float]]]
    what: str


@dataclass(frozen=True)
class Bar:
    """One bar, and the dot that is compared with it: what it stands for, what was observed, what was expected."""

    label: str
    observed: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class Bars(Panel):
    """A small plot an objective, with a bar for what was observed and a dot for what the model expects; in shares.

    Attributes:
        figures: By objective, the bars from left to right.
    """

    figures: Mapping[str, Sequence[Bar]]
