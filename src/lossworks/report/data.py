"""The data of a report in plain types: ``compare`` fills it in, and ``render`` draws it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from lossworks.report.panels import Panel


class Difference(TypedDict):
    """One objective's score minus the reference's, on the test rows of one fold of one repeat, in the metric's unit."""

    fold: int
    repeat: int
    difference: float


class GroupScore(TypedDict):
    """The metric of one group of rows with its interval, and its difference to the reference; None where unknown."""

    mean: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None


class Groups(TypedDict):
    """The metric in each group of rows: ``objectives[name][g]`` belongs to the group ``names[g]``."""

    metric: str
    names: Sequence[str]
    objectives: Mapping[str, Sequence[GroupScore]]
    counts: Sequence[int]


class FindingEntry(TypedDict):
    """A property of the data that was found, in plain words, with its numbers."""

    level: Literal["info", "notice", "warning"]
    text: str
    numbers: Mapping[str, Any]


class Robustness(TypedDict):
    """The accuracy under attack by the radius of the ball: one curve of (radius, accuracy) for each model."""

    norm: str
    eps: float
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]


class CandidateEntry(TypedDict):
    """An objective that was tried: why, at which settings, and in how many folds each setting was chosen."""

    name: str
    why: str
    settings: Sequence[str]
    chosen: Mapping[str, int]
    papers: Sequence[str]


class Reuse(TypedDict):
    """The run folder, and the lines that use it."""

    run: str
    predict: str
    python: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the report says; the report computes nothing from it but positions in drawings.

    Mappings by objective use the names in ``ranking``; an objective that a mapping lacks is left out of that chart.

    Args:
        title: the document's title.
        data_name: what the user called the data.
        task: what is predicted, in words.
        metric: the metric that decides; its mean is `ranking[i][metric]`.
        metric_higher_is_better: False for losses and errors.
        answer: the result in one sentence.
        reference: the objective that the others are compared with.
        outside: the method that is in the table but not in the contest.
        winner: the objective whose model is handed over.
        partial: why the run is incomplete, in one sentence; None when it is complete.
        ranking: rows in ranking order with the keys objective, setting, `metric`, low, high, difference,
            difference_low, difference_high, p_adjusted, p_better, p_equal, p_worse, rank, verdict, and every name in
            `metric_columns`; a missing number is None or NaN.
        metric_columns: the metrics of the full table, the deciding one among them.
        higher_is_better: the direction of each of `metric_columns`; one that is missing has no best value marked.
        differences: by objective, the paired differences to the reference.
        groups: the metric in each group; None if the rows have no groups.
        titles: what metrics are called, by name; one that is missing goes by its name.
        panels: what the task shows of the predictions, in order.
        curves: by objective, one (step, inner score) curve a trained model; larger is better.
        robustness: the accuracy under attack; None if the models were not attacked.
        findings: what was found in the data.
        candidates: what was tried and why.
        method: how it was measured, a paragraph each.
        reuse: None when nothing was saved.
        versions: software by name.
        seed: the run's seed.
        rows: the number of rows of the data.
        columns: the number of features of the data.
        seconds: wall-clock time of the run.
        rope: half-width of the region of practical equivalence, in the metric's unit.
        level: coverage of the intervals.
    """

    title: str
    data_name: str
    task: str
    metric: str
    metric_higher_is_better: bool
    answer: str
    reference: str
    ranking: Sequence[Mapping[str, Any]]
    metric_columns: Sequence[str]
    method: Sequence[str]
    versions: Mapping[str, str]
    seed: int
    rows: int
    columns: int
    seconds: float
    outside: str | None = None
    winner: str | None = None
    partial: str | None = None
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    differences: Mapping[str, Sequence[Difference]] = field(default_factory=dict)
    groups: Groups | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    panels: Sequence[Panel] = ()
    curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]] = field(default_factory=dict)
    robustness: Robustness | None = None
    findings: Sequence[FindingEntry] = ()
    candidates: Sequence[CandidateEntry] = ()
    reuse: Reuse | None = None
    rope: float | None = None
    level: float = 0.95
