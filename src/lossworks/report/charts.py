"""The report's charts as inline SVG.

Positions are percentages of the drawing, so that a chart fills the width of its place while its text keeps the page's
size. Curves are stretched from a 100 x 100 box with strokes that do not scale. The style sheet sets the colours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from lossworks.report.data import Difference
from lossworks.report.panels import Bar, Line
from lossworks.report.text import is_number, number, percent

FENCE = 3.0  # interquartile ranges beyond which a value no longer widens its axis
MAX_STEPS = 80
MAX_PAIRS = 1500
LABEL = 6
"""The number of characters of a bar's label that are shown."""


@dataclass(frozen=True)
class Scale:
    """An axis: its range, its ticks, and where a value lies on it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Iterable[Any], *, margin: float = 0.05, tick_count: int = 4, fence: float = FENCE) -> "Scale":
        """Build an axis that holds all values except those far outside the middle half."""
        finite = np.array([value for value in values if is_number(value)], dtype=float)
        if finite.size == 0:
            finite = np.array([0.0, 1.0])
        low, lower, upper, high = np.quantile(finite, [0, 0.25, 0.75, 1]).tolist()
        if upper > lower:
            low, high = max(low, lower - fence * (upper - lower)), min(high, upper + fence * (upper - lower))
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
        pad = margin * (high - low)
        return cls(low - pad, high + pad, ticks(low - pad, high + pad, tick_count))

    def share(self, value: float) -> float:
        """The value's position in percent, which is outside [0, 100] if the value is off the axis."""
        return 100 * (value - self.low) / (self.high - self.low)

    def at(self, value: float) -> float:
        """The value's position in percent, or the nearer end of the axis if the value is off it."""
        return min(100.0, max(0.0, self.share(value)))

    def holds(self, value: float) -> bool:
        """Whether the value is on the axis."""
        return self.low <= value <= self.high

    @property
    def digits(self) -> int:
        """The number of decimals with which the ticks differ."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else self.high - self.low
        return min(8, max(0, math.ceil(-math.log10(step) - 1e-9)))


def ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """About ``count`` round numbers between the ends of the axis."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.7 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """Build an element; text and attribute values are escaped, and ``_`` in an attribute's name stands for ``-``."""
    rendered = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.2f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, rendered, Markup("").join(children))


def place(value: float) -> str:
    """A percentage as an SVG coordinate."""
    return f"{value:.2f}%"


def vertical(x: float, class_: str) -> Markup:
    """A vertical line over the full height."""
    return tag("line", x1=place(x), x2=place(x), y1="0", y2="100%", class_=class_)


def drawing(*children: Markup, class_: str, summary: str) -> Markup:
    """A chart with the sentence that a screen reader says in its place."""
    return tag("svg", *children, class_=class_, role="img", aria_label=summary)


def axis(scale: Scale, *, sign: bool = False) -> Markup:
    """The numbers under (or over) rows that share a scale."""
    labels = [
        tag("text", number(tick, scale.digits, sign=sign), x=place(scale.at(tick)), y="50%", class_="tick middle")
        for tick in scale.ticks
    ]
    return tag("svg", *labels, class_="axis", aria_hidden="true")


def span(scale: Scale, low: Any, high: Any, y: str, class_: str) -> Markup:
    """A horizontal line from low to high; nothing when either is missing."""
    if not (is_number(low) and is_number(high)):
        return Markup("")
    return tag("line", x1=place(scale.at(low)), x2=place(scale.at(high)), y1=y, y2=y, class_=class_)


def point(scale: Scale, value: Any, y: str, class_: str, tip: str, *, radius: float = 4.5) -> Markup:
    """A dot with a tooltip; an arrow at the edge when the value is off the axis."""
    if not is_number(value):
        return Markup("")
    if not scale.holds(value):
        arrow = "\N{BLACK LEFT-POINTING TRIANGLE}" if value < scale.low else "\N{BLACK RIGHT-POINTING TRIANGLE}"
        return tag("text", arrow, x=place(scale.at(value)), y=y, class_=f"arrow middle {class_}", data_tip=tip)
    return tag("circle", cx=place(scale.at(value)), cy=y, r=radius, class_=f"dot {class_}", data_tip=tip)


def forest(scale: Scale, row: Mapping[str, Any], metric: str, reference: Any, digits: int) -> Markup:
    """One objective's mean and interval over the reference's line."""
    mean, low, high = row[metric], row["low"], row["high"]
    tip = f"{number(mean, digits)}, interval {number(low, digits)} to {number(high, digits)}"
    base = [vertical(scale.at(tick), "grid") for tick in scale.ticks]
    if is_number(reference):
        base.append(vertical(scale.at(reference), "baseline"))
    marks = [span(scale, low, high, "50%", "interval"), point(scale, mean, "50%", "mean", tip)]
    return drawing(*base, *marks, class_="cell", summary=f"{row['objective']}: {tip}")


def paired(
    scale: Scale, row: Mapping[str, Any], differences: Sequence[Difference], rope: float | None, digits: int
) -> Markup:
    """A dot for each fold and repeat, and their mean with its interval, over the region that counts as equal."""
    base = [vertical(scale.at(tick), "grid") for tick in scale.ticks]
    if rope:
        left, right = scale.at(-rope), scale.at(rope)
        base.insert(0, tag("rect", x=place(left), width=place(right - left), y="0", height="100%", class_="rope"))
    base.append(vertical(scale.at(0.0), "baseline"))
    repeats = sorted({entry["repeat"] for entry in differences})
    lane = {repeat: 14 + 42 * (index + 0.5) / len(repeats) for index, repeat in enumerate(repeats)}
    dots = [
        point(
            scale,
            entry["difference"],
            place(lane[entry["repeat"]]),
            "fold",
            f"fold {entry['fold']}, repeat {entry['repeat']}: {number(entry['difference'], digits, sign=True)}",
            radius=3.5,
        )
        for entry in differences
    ]
    mean, low, high = row["difference"], row["difference_low"], row["difference_high"]
    tip = (
        f"mean {number(mean, digits, sign=True)}, interval {number(low, digits, sign=True)} to "
        f"{number(high, digits, sign=True)}"
    )
    marks = [span(scale, low, high, "77%", "interval"), point(scale, mean, "77%", "mean", tip)]
    return drawing(*base, *dots, *marks, class_="lane", summary=f"{row['objective']}: {tip}")


def chances(row: Mapping[str, Any]) -> Markup:
    """The probabilities of being better, equal and worse as one bar."""
    shares = [(name, row[f"p_{name}"]) for name in ("better", "equal", "worse")]
    if not all(is_number(share) for _, share in shares):
        return Markup("")
    tip = ", ".join(f"{name} {percent(share)}" for name, share in shares)
    bars, left = [], 0.0
    for name, share in shares:
        bars.append(tag("rect", x=place(left), width=place(100 * share), y="0", height="100%", class_=name))
        left += 100 * share
    return tag("svg", *bars, class_="chances", role="img", aria_label=tip, data_tip=tip)


def path(xs: Iterable[float], ys: Iterable[float], class_: str, *, closed: bool = False) -> Markup:
    """A line through points given in percent, y upwards."""
    steps = " L".join(f"{x:.2f} {100 - y:.2f}" for x, y in zip(xs, ys, strict=True))
    return tag("path", d=f"M{steps}{'Z' if closed else ''}", class_=class_)


def panel(x: Scale, y: Scale, curves: Sequence[Markup], marks: Sequence[Markup], summary: str) -> Markup:
    """A small plot with both axes."""
    grid = [
        tag("line", x1="0", x2="100%", y1=place(100 - y.at(tick)), y2=place(100 - y.at(tick)), class_="grid")
        for tick in y.ticks
    ]
    y_labels = [
        tag("text", number(tick, y.digits), x="0", dx="-6", y=place(100 - y.at(tick)), class_="tick end")
        for tick in y.ticks
    ]
    x_labels = [
        tag("text", number(tick, x.digits), x=place(x.at(tick)), y="100%", dy="13", class_="tick middle")
        for tick in x.ticks
    ]
    stretched = tag("svg", *curves, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%")
    return drawing(*grid, *y_labels, *x_labels, stretched, *marks, class_="panel", summary=summary)


@dataclass(frozen=True)
class Band:
    """Curves of several runs at common steps: their mean, and where the middle four fifths of them lie."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray

    @classmethod
    def of(cls, curves: Sequence[Sequence[tuple[float, float]]]) -> "Band | None":
        """Summarise at the steps that at least half of the runs reached; None when no score is finite."""
        found: dict[float, list[float]] = {}
        for curve in curves:
            for step, score in curve:
                if is_number(score):
                    found.setdefault(step, []).append(score)
        kept = sorted(step for step, scores in found.items() if 2 * len(scores) >= len(curves))
        if not kept:
            return None
        if len(kept) > MAX_STEPS:
            kept = [kept[index] for index in np.linspace(0, len(kept) - 1, MAX_STEPS).round().astype(int)]
        scores = [np.array(found[step]) for step in kept]
        low, high = zip(*(np.quantile(values, [0.1, 0.9]) for values in scores), strict=True)
        return cls(
            np.array(kept, dtype=float),
            np.array([values.mean() for values in scores]),
            np.array(low),
            np.array(high),
            np.array([values.size for values in scores]),
        )


def course(
    x: Scale, y: Scale, name: str, band: Band, reference: Band | None, *, along: str, what: str, digits: int = 0
) -> Markup:
    """One objective's mean curve and band, with the reference's mean behind it.

    ``along`` names what the x axis counts, with ``digits`` decimals, and ``what`` names what the curve shows.
    """
    place_x = [x.share(step) for step in band.steps]
    curves = [
        path(
            [*place_x, *reversed(place_x)],
            [y.share(value) for value in (*band.high, *reversed(band.low))],
            "band",
            closed=True,
        )
    ]
    if reference is not None:
        curves.append(path(map(x.share, reference.steps), map(y.share, reference.mean), "curve other"))
    curves.append(path(place_x, map(y.share, band.mean), "curve own"))
    marks = [
        tag(
            "circle",
            cx=place(at),
            cy=place(100 - y.at(mean)),
            r="7",
            class_="target",
            data_tip=f"{along} {number(step, digits)}: {number(mean, 3)} ({number(low, 3)} to {number(high, 3)}, "
            f"{runs} models)",
        )
        for at, step, mean, low, high, runs in zip(
            place_x, *(array.tolist() for array in (band.steps, band.mean, band.low, band.high, band.runs)), strict=True
        )
    ]
    last = number(band.steps[-1].item(), digits)
    summary = f"{name}: mean {what} {number(band.mean[-1].item(), 3)} at {along} {last}"
    return panel(x, y, curves, marks, summary)


UNIT = Scale(0.0, 1.0, (0.0, 0.5, 1.0))


def joined(scale: Scale, lines: Sequence[Line], summary: str) -> Markup:
    """Lines of dots over the diagonal, on one scale for both axes; a dot's size is its share of its line's weight."""
    curves, marks = [path([0, 100], [0, 100], "diagonal")], []
    for line in lines:
        filled = [dot for dot in line.dots if dot.weight]
        if not filled:
            continue
        total = sum(dot.weight for dot in filled)
        xs, ys = [scale.at(dot.x) for dot in filled], [scale.at(dot.y) for dot in filled]
        curves.append(path(xs, ys, f"curve {line.style}"))
        for dot, x, y in zip(filled, xs, ys, strict=True):
            radius = 2 + 6 * math.sqrt(dot.weight / total)
            place_of = {"cx": place(x), "cy": place(100 - y), "r": radius}
            marks.append(tag("circle", **place_of, class_=f"dot {line.style}", data_tip=dot.tip))
    return panel(scale, scale, curves, marks, summary)


def bars(scale: Scale, name: str, shown: Sequence[Bar]) -> Markup:
    """A bar for what was observed and a dot for what was expected, both shares on the scale."""
    width = 100 / len(shown)
    own = Scale(0.0, float(len(shown)), ())
    marks, labels = [], []
    for number_, bar in enumerate(shown):
        tip = f"{bar.label}: observed {percent(bar.observed)}, expected {percent(bar.expected)}"
        x, top, dot = width * number_, scale.at(bar.observed), scale.at(bar.expected)
        sized = {"x": place(x + 0.15 * width), "y": place(100 - top), "width": place(0.7 * width), "height": place(top)}
        marks.append(tag("rect", **sized, class_="observed", data_tip=tip))
        middle = place(x + width / 2)
        marks.append(tag("circle", cx=middle, cy=place(100 - dot), r=3.5, class_="dot after", data_tip=tip))
        if number_ % (1 + (len(shown) - 1) // 6) == 0:
            labels.append(tag("text", bar.label[:LABEL], x=middle, y="100%", dy="13", class_="tick middle"))
    furthest = max(shown, key=lambda bar: abs(bar.expected - bar.observed))
    summary = (
        f"{name}: furthest apart at {furthest.label}, observed {percent(furthest.observed)}, expected "
        f"{percent(furthest.expected)}"
    )
    return panel(own, scale, [], [*marks, *labels], summary)


def residual(scale: Scale, name: str, levels: Sequence[float], values: Sequence[float], digits: int) -> Markup:
    """Quantiles of predicted minus actual as nested lines around a median."""
    base = [*(vertical(scale.at(tick), "grid") for tick in scale.ticks), vertical(scale.at(0.0), "baseline")]
    described = ", ".join(
        f"{percent(level)} below {number(value, digits, sign=True)}"
        for level, value in zip(levels, values, strict=True)
    )
    depth = len(values) // 2
    lines = [
        span(scale, values[index], values[-1 - index], "50%", f"quantiles q{min(2, depth - 1 - index)}")
        for index in range(depth)
    ]
    median = [point(scale, values[depth], "50%", "mean", described)] if len(values) % 2 else []
    return drawing(*base, *lines, *median, class_="cell", summary=f"{name}: {described}")


def agreement(scale: Scale, name: str, pairs: Sequence[tuple[float, float]], what: str) -> Markup:
    """A faint dot for each pair over the diagonal; many pairs are evenly thinned."""
    thinned = pairs[:: math.ceil(len(pairs) / MAX_PAIRS) or 1]
    dots = "".join(
        f"M{scale.share(x):.1f} {100 - scale.share(y):.1f}h0" for x, y in thinned if is_number(x) and is_number(y)
    )
    curves = [path([0, 100], [0, 100], "diagonal"), tag("path", d=dots or "M0 0", class_="cloud")]
    return panel(scale, scale, curves, [], f"{name}: {what}, {number(len(thinned), 0)} rows")
