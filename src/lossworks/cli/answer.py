"""The output of ``lossworks compare``: the answer, the ranking, the findings and the paths of the results."""

import re
from pathlib import Path

from rich.measure import Measurement
from rich.table import Table

from lossworks.cli.screen import number, out, plain, say_command, say_item
from lossworks.comparison.handover.comparison import Comparison

__all__ = ["tell"]

WIDE = 120
LEAST_NAME = 18
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
METRIC_HEADINGS = {"balanced_accuracy": "bal. accuracy", "average_precision": "avg. precision"}
EXTRA_HEADINGS = {"robust_accuracy": "under\nattack", "verified_accuracy": "proved"}
VERDICTS = {"reference": "dim", "better": "green", "equal": "default", "worse": "red", "unclear": "dim"}


def tell(result: Comparison, folder: Path) -> None:
    """Print the answer, the ranking, the findings, and the paths of the results."""
    out.print(plain(f"\n{result.answer}\n"), style="bold")
    if result.partial:
        out.print(plain(f"Partial: {result.partial}.\n"), style="yellow")
    out.print(_fitting_ranking(result), crop=False)
    out.print()
    for finding in result.findings:
        colour = {"info": "dim", "notice": "default", "warning": "yellow"}[finding.level]
        say_item(finding.text, style=colour)
    out.print(plain(f"\nreport   {folder}/report.html"), soft_wrap=True)
    say_command(out, "predict", "predict", str(folder), "new.csv")
    if result.partial:
        say_command(out, "resume", "compare", "--resume", str(folder))


def _fitting_ranking(result: Comparison) -> Table:
    """The ranking for this screen; names are broken into lines only if the table does not fit otherwise."""
    wide = out.width >= WIDE
    longest = max(map(len, result.ranking["objective"]))
    table = _ranking(result, wide=wide, room=longest)
    excess = Measurement.get(out, out.options.update(width=10 * WIDE), table).maximum - out.width
    return table if excess <= 0 else _ranking(result, wide=wide, room=max(LEAST_NAME, longest - excess))


def _ranking(result: Comparison, *, wide: bool, room: int) -> Table:
    """The ranking as a table: the deciding metric, and on a wide screen also the chances and the settings."""
    metric = result.plan.metric.name
    also = [name for name in result.ranking.columns if name in EXTRA_HEADINGS or name.startswith("worst_group_")]
    also = [name for name in also if name != metric]
    p_value = wide or not also
    table = Table(box=None, pad_edge=False, collapse_padding=len(also) > 2 and not wide)
    table.add_column("objective", no_wrap=True)
    headings = [EXTRA_HEADINGS.get(name, "worst\ngroup") for name in also]
    for heading in (METRIC_HEADINGS.get(metric, metric), *headings, "difference", *(["adj. p"] if p_value else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("P(better)", "P(equal)", "P(worse)") if wide else ():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    if wide:
        table.add_column("setting")
    for row in result.ranking.to_dicts():
        reference = row["role"] == "reference"
        chances = [number(row[key]) for key in ("p_better", "p_equal", "p_worse")]
        table.add_row(
            plain(_broken(row["objective"], room)),
            _with_margin(row[metric], row["high"]),
            *(number(row[name]) for name in also),
            "" if reference else _with_margin(row["difference"], row["difference_high"], sign=True),
            *([number(row["p_adjusted"])] if p_value else []),
            *(chances if wide else ()),
            f"[{VERDICTS[row['verdict']]}]{row['verdict']}[/]",
            *((plain(row["setting"]),) if wide else ()),
        )
    return table


def _broken(name: str, room: int) -> str:
    """The name in as many lines as it needs, broken between its parts, or before capitals in a part too long."""
    lines = [""]
    parts = re.split(r"(?<=[+ ])", name)
    for piece in (piece for part in parts for piece in ([part] if len(part) <= room else HUMP.split(part))):
        if lines[-1] and len(lines[-1]) + len(piece) > room:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _with_margin(mean: float | None, high: float | None, *, sign: bool = False) -> str:
    """A mean with half the width of its 95 % interval."""
    margin = "" if mean is None or high is None else f" ± {number(high - mean)}"
    return number(mean, sign=sign) + margin
