"""The rendering of ``ReportData`` as one HTML document.

No value is trusted: the template escapes every one. The document's own policy allows only the script that is hashed
here, and lets the browser load nothing from elsewhere.
"""

import base64
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lossworks.report import charts, text
from lossworks.report.data import GroupScore, ReportData
from lossworks.report.drawn import drawn, most_unlike, tone

MAX_GROUPS = 30


def render(data: ReportData) -> str:
    """Render the report as the text of one self-contained HTML file."""
    style, script = (
        files("lossworks.report").joinpath(name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    document = (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            style=Markup(style),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            ranking=_ranking(data),
            metrics=_metrics(data),
            differences=_differences(data),
            groups=_groups(data),
            panels=_panels(data),
            learning=_learning(data),
            robustness=_robustness(data),
        )
    )
    return document.encode("utf-8", "replace").decode("utf-8")  # a file's name may not be valid text


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lossworks", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        text.number,
        text.percent,
        text.p_value,
        text.duration,
        text.label,
        text.heading,
        text.soft,
        text.plain,
    )
    for function in filters:
        environment.filters[function.__name__] = function
    environment.tests["a_number"] = text.is_number
    return environment


def _order(data: ReportData) -> list[str]:
    return [row["objective"] for row in data.ranking]


def _row(data: ReportData, objective: str) -> Mapping[str, Any] | None:
    return next((row for row in data.ranking if row["objective"] == objective), None)


def _ranking(data: ReportData) -> dict[str, Any]:
    ends = [row[key] for row in data.ranking for key in (data.metric, "low", "high")]
    scale, digits = charts.Scale.over(ends), text.decimals(ends)
    changes = text.decimals(row[key] for row in data.ranking for key in ("difference_low", "difference_high"))
    reference = _row(data, data.reference)
    centre = None if reference is None else reference[data.metric]
    return {
        "axis": charts.axis(scale),
        "digits": digits,
        "changes": max(digits, changes),
        "rows": [
            {
                "values": row,
                "plot": charts.forest(scale, row, data.metric, centre, digits),
                "chances": charts.chances(row),
                "outside": row["objective"] == data.outside,
                "winner": row["objective"] == data.winner,
            }
            for row in data.ranking
        ],
    }


def _metrics(data: ReportData) -> list[dict[str, Any]]:
    columns = []
    for name in data.metric_columns:
        values = [row[name] for row in data.ranking]
        known = [value for value in values if text.is_number(value)]
        best = None
        if known and name in data.higher_is_better:
            best = max(known) if data.higher_is_better[name] else min(known)
        columns.append(
            {"name": name, "higher": data.higher_is_better.get(name), "digits": text.decimals(known), "best": best}
        )
    return columns


def _differences(data: ReportData) -> dict[str, Any] | None:
    rows = [
        row for row in data.ranking if row["objective"] != data.reference and data.differences.get(row["objective"])
    ]
    if not rows:
        return None
    single = [entry["difference"] for row in rows for entry in data.differences[row["objective"]]]
    region = [] if data.rope is None else [-data.rope, data.rope]
    scale = charts.Scale.over([0.0, *region, *single], tick_count=5)
    digits = text.decimals(single)
    return {
        "axis": charts.axis(scale, sign=True),
        "rows": [
            {
                "values": row,
                "plot": charts.paired(scale, row, data.differences[row["objective"]], data.rope, digits),
                "outside": row["objective"] == data.outside,
            }
            for row in rows
        ],
    }


def _groups(data: ReportData) -> dict[str, Any] | None:
    """The groups in which the objectives differ most, in the data's order."""
    groups = data.groups
    if groups is None or not groups["objectives"]:
        return None
    names = [name for name in _order(data) if name in groups["objectives"]]
    columns = [groups["objectives"][name] for name in names]
    shown = most_unlike([[cell["mean"] for cell in column] for column in columns], MAX_GROUPS)
    cells = [column[index] for column in columns for index in shown]
    changes = [abs(cell["difference"]) for cell in cells if cell["difference"] is not None]
    strongest = max([*changes, 10 * (data.rope or 0.0), 1e-12])
    sign = 1 if data.metric_higher_is_better else -1
    return {
        "names": names,
        "digits": text.decimals(value for cell in cells for value in (cell["low"], cell["high"], cell["mean"])),
        "left_out": len(groups["names"]) - len(shown),
        "rows": [
            {
                "group": groups["names"][index],
                "count": groups["counts"][index],
                "cells": [_group_cell(column[index], sign, strongest) for column in columns],
            }
            for index in shown
        ],
    }


def _group_cell(cell: GroupScore, sign: int, strongest: float) -> dict[str, Any]:
    low, high, change = cell["difference_low"], cell["difference_high"], cell["difference"]
    certain = low is not None and high is not None and low * high > 0
    return {"values": cell, "certain": certain} | tone(0.0 if change is None else sign * change, strongest)


def _panels(data: ReportData) -> list[dict[str, Any]]:
    """The panels that have something to show, each with its words."""
    order = _order(data)
    pairs = [(panel, drawn(panel, order, data.reference)) for panel in data.panels]
    return [{"panel": panel, **found} for panel, found in pairs if found]


def _learning(data: ReportData) -> list[dict[str, Any]]:
    return _courses(data, data.curves, along="step", what="inner score")


def _robustness(data: ReportData) -> list[dict[str, Any]]:
    if data.robustness is None:
        return []
    digits = text.decimals([point[0] for curves in data.robustness["curves"].values() for point in curves[0]])
    return _courses(data, data.robustness["curves"], along="radius", what="accuracy", digits=digits)


def _courses(
    data: ReportData,
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    *,
    along: str,
    what: str,
    digits: int = 0,
) -> list[dict[str, Any]]:
    bands = {name: charts.Band.of(curves[name]) for name in _order(data) if name in curves}
    found = {name: band for name, band in bands.items() if band is not None}
    if not found:
        return []
    x = charts.Scale.over(
        [0, *(band.steps[-1].item() for band in found.values())], margin=0, tick_count=3, fence=math.inf
    )
    y = charts.Scale.over(
        [value for band in found.values() for values in (band.mean, band.low, band.high) for value in values.tolist()],
        tick_count=3,
    )
    reference = found.get(data.reference)

    def plot(name: str, band: charts.Band) -> Markup:
        behind = None if name == data.reference else reference
        return charts.course(x, y, name, band, behind, along=along, what=what, digits=digits)

    return [{"name": name, "plot": plot(name, band), "models": len(curves[name])} for name, band in found.items()]
