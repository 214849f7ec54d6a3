"""The outcome of a comparison: the ranking, and the data, plan and results behind it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch
from torch import Tensor

from lossworks.comparison.candidates import Candidate
from lossworks.comparison.findings import Finding
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.plan import Plan
from lossworks.comparison.read.dataset import Dataset
from lossworks.comparison.read.encode import Encoder
from lossworks.verdict.judge import Judgement, by_group, winner


@dataclass(frozen=True)
class Outcome:
    """What a comparison planned, found and judged: everything that the report and the recipe need.

    Attributes:
        plan: The plan of what was trained.
        findings: What was found in the data, in plain words.
        judgement: The ranking with the tests behind it.
        results: One row for each trained model: its setting, fold and repeat, whether its setting was chosen, and every
            metric.
        partial: The reason why the run is incomplete, or None if it is complete.
    """

    dataset: Dataset
    data: Any
    x: Tensor
    encoder: Encoder
    architecture: Architecture
    device: torch.device
    plan: Plan
    findings: tuple[Finding, ...]
    judgement: Judgement
    results: pl.DataFrame
    replicas: tuple[dict[str, Any], ...]
    partial: str | None
    shape: tuple[int, int]
    seconds: float

    @property
    def ranking(self) -> pl.DataFrame:
        """The objectives from best to worst, each with its difference to the reference and its verdict."""
        return self.judgement.ranking

    @property
    def winner(self) -> str:
        """The best objective whose verdict is ``better`` than the reference, or else the reference."""
        return winner(self.ranking)

    @cached_property
    def groups(self) -> pl.DataFrame | None:
        """The deciding metric of each group of rows, with its interval and its difference to the reference.

        It is None if the rows have no groups; see :func:`lossworks.verdict.judge.by_group` for the columns.
        """
        if self.dataset.group is None:
            return None
        return by_group(
            self.results.filter(pl.col("chosen")),
            self.dataset.group_names,
            reference=self.plan.reference,
            test_fraction=self.judgement.test_fraction,
            alpha=self.judgement.alpha,
        )

    def chosen_setting(self, objective: str) -> int:
        """The number of the objective's setting that was chosen in most folds; the first one if there is a tie."""
        rows = self.results.filter((pl.col("objective") == objective) & pl.col("chosen"))
        counts = Counter(rows["setting_number"].to_list())
        return min(counts, key=lambda number: (-counts[number], number))

    def candidate(self, objective: str) -> Candidate:
        """The candidate of this name."""
        return next(candidate for candidate in self.plan.candidates if candidate.name == objective)
