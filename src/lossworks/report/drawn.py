"""The drawing of panels: it turns each form of panel into a table of cells, small plots, or rows on one scale."""

import functools
from collections.abc import Sequence
from typing import Any

from lossworks.report import charts, text
from lossworks.report.panels import Bars, Cloud, Intervals, Lines, Panel, Table

__all__ = ["drawn", "most_unlike", "tone"]

MOST_ROWS = 30
"""The largest number of rows of a table; if there are more, those in which the objectives differ most are shown."""


@functools.singledispatch
def drawn(panel: Panel, order: Sequence[str], reference: str) -> dict[str, Any]:
    """The values that the template prints for a panel, with its ``form``; empty if the panel has no objective.

    Args:
        panel: The panel to draw.
        order: The objectives from best to worst.
        reference: The objective that the others are compared with.
    """
    raise TypeError(f"panel must be of a form that the report can draw, got {type(panel).__name__}")


@drawn.register
def _(panel: Table, order: Sequence[str], reference: str) -> dict[str, Any]:
    """Draw the rows in which the objectives differ most, in the order of the table."""
    names = list(panel.columns)
    if not names:
        return {}
    columns = [panel.columns[name] for name in names]
    base = panel.columns.get(reference)
    shown = most_unlike(columns, MOST_ROWS)

    def cell(value: float | None, centre: float | None) -> dict[str, Any]:
        change = None if value is None or centre is None else value - centre
        return {"value": value, "change": change} | tone(change or 0.0, panel.strongest)

    return {
        "form": "table",
        "names": names,
        "left_out": len(panel.rows) - len(shown),
        "rows": [
            {
                "name": panel.rows[index],
                "count": None if panel.counts is None else panel.counts[index],
                "cells": [cell(column[index], None if base is None else base[index]) for column in columns],
            }
            for index in shown
        ],
    }


@drawn.register
def _(panel: Lines, order: Sequence[str], reference: str) -> dict[str, Any]:
    scale = charts.UNIT
    if not panel.unit:
        dots = [dot for lines in panel.figures.values() for line in lines for dot in line.dots]
        scale = charts.Scale.over([value for dot in dots for value in (dot.x, dot.y)], tick_count=3)
    return _figures(
        [
            {
                "name": name,
                "plot": charts.joined(scale, panel.figures[name], panel.summaries[name]),
                "notes": panel.notes.get(name, ()),
            }
            for name in order
            if name in panel.figures
        ]
    )


@drawn.register
def _(panel: Cloud, order: Sequence[str], reference: str) -> dict[str, Any]:
    values = [value for pairs in panel.pairs.values() for pair in pairs for value in pair]
    scale = charts.Scale.over(values, tick_count=3)
    return _figures(
        [
            {"name": name, "plot": charts.agreement(scale, name, panel.pairs[name], panel.what), "notes": ()}
            for name in order
            if name in panel.pairs
        ]
    )


@drawn.register
def _(panel: Bars, order: Sequence[str], reference: str) -> dict[str, Any]:
    shares = [share for bars in panel.figures.values() for bar in bars for share in (bar.observed, bar.expected)]
    scale = charts.Scale.over([0.0, *shares], margin=0, tick_count=3, fence=float("inf"))
    return _figures(
        [
            {"name": name, "plot": charts.bars(scale, name, panel.figures[name]), "notes": ()}
            for name in order
            if name in panel.figures
        ]
    )


@drawn.register
def _(panel: Intervals, order: Sequence[str], reference: str) -> dict[str, Any]:
    values = [value for name in panel.quantiles for value in panel.quantiles[name]]
    scale, digits = charts.Scale.over([0.0, *values]), text.decimals(values)
    rows = [
        {"name": name, "plot": charts.residual(scale, name, panel.levels, panel.quantiles[name], digits)}
        for name in order
        if name in panel.quantiles
    ]
    return {"form": "rows", "axis": charts.axis(scale, sign=True), "rows": rows} if rows else {}


def _figures(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"form": "figures", "entries": entries} if entries else {}


def most_unlike(columns: Sequence[Sequence[float | None]], limit: int) -> list[int]:
    """The indices, at most ``limit``, of the rows in which the columns differ most, in ascending order."""

    def spread(index: int) -> float:
        values = [value for column in columns if (value := column[index]) is not None]
        return max(values) - min(values) if values else -1.0

    return sorted(sorted(range(len(columns[0])), key=spread, reverse=True)[:limit])


def tone(change: float, strongest: float) -> dict[str, Any]:
    """The colour of a change for the better or the worse, and how strong it is."""
    sign = "up" if change > 0 else "down" if change < 0 else ""
    return {"tone": sign, "strength": min(1.0, abs(change) / strongest)}
