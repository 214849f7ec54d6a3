"""What a comparison came to: the ranking and what it rests on."""

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
    """What was planned, found and judged: all that the report and the recipe tell of.

    Attributes:
        plan: What was trained.
        findings: What was seen in the data, in plain words.
        judgement: The ranking and what it rests on.
        results: One row a trained model: setting, fold, repeat, whether its setting was chosen, every metric.
        partial: Why the run is incomplete, or None.
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
        """The best objective that is really better than the reference, or else the reference."""
        return winner(self.ranking)

    @cached_property
    def groups(self) -> pl.DataFrame | None:
        """The deciding metric of each group of rows, with its interval and difference to the reference; see
        :func:`lossworks.verdict.judge.by_group`. None without groups."""
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
        """The setting of the objective that was chosen most often on inner rows, the first where there is a tie."""
        rows = self.results.filter((pl.col("objective") == objective) & pl.col("chosen"))
        counts = Counter(rows["setting_number"].to_list())
        return min(counts, key=lambda number: (-counts[number], number))

    def candidate(self, objective: str) -> Candidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.plan.candidates if candidate.name == objective)
