"""What a data set asks for: how its target is read, trained on, judged and handed over."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from lossworks.checks import InputError
from lossworks.comparison.models.scaling import TargetScale
from lossworks.metrics.registry import Metric
from lossworks.report.panels import Panel
from lossworks.roles import BatchLoss, Kind, Loss

__all__ = ["Portraits", "RecipeLines", "Target", "Task"]

Portraits = Mapping[str, Sequence[Mapping[str, Any]]]
"""By objective, the portrait of each of its trained models."""


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Attributes:
        values: ``(n,)`` int64 class codes, or float64 values.
        classes: The labels as text, in the order of their codes; empty where the target is no class.
    """

    values: np.ndarray
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeLines:
    """A task's lines of the script that trains the winner in a plain loop.

    Attributes:
        target: Makes ``y``, the targets as the loss takes them, of ``dataset.target`` and the training rows ``fit``.
        error_name: What is measured on the inner rows, in words.
        error: The expression for it, of ``predicted``, ``y`` and ``inner``; a number, lower is better.
        facts: By name, the expression for what a part may need of the training rows.
    """

    target: str
    error_name: str
    error: str
    facts: Mapping[str, str] = field(default_factory=dict)


class Task(ABC):
    """One kind of question that a data set asks; it has no state, so all objects of one class are equal.

    Class attributes:
        name: What it is called on the command line and in saved files.
        title: What the target is, for an error: ``"real-valued"``.
        order: Tasks are asked by this number whether they recognise a target, from the lowest on.
        kinds: The kinds of the losses that fit.
        reference: The loss that the others are compared with, by its name in the catalog.
        metrics: What is reported, in the order of the tables; the first decides unless :meth:`default_metric` says
            otherwise.
        troubles: What any data set of this task may have, in the catalog's words: a loss that helps with each is
            always tried.
        has_classes: Whether a target is a class, so that a row is right or wrong and may be attacked.
        spreads: Whether a target is a number whose outliers and tails are looked at.
        dtype: Of the target in training.
        splitting: How folds are drawn, for the report, after "drawn 2 times".
        calibrating: What is done before predictions are scored, for the report.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    order: ClassVar[int]
    kinds: ClassVar[tuple[Kind, ...]]
    reference: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    troubles: ClassVar[tuple[str, ...]] = ()
    has_classes: ClassVar[bool] = False
    spreads: ClassVar[bool] = False
    dtype: ClassVar[torch.dtype] = torch.float32
    splitting: ClassVar[str] = ""
    calibrating: ClassVar[str] = ""

    # Data

    def recognises(self, labels: pl.Series, distinct: pl.Series) -> bool:
        """Whether a target with these values, and these different ones in order, asks for this task by itself."""
        return False

    @abstractmethod
    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """The target of these values, and these different ones in order.

        Raises:
            InputError: they are no target of this task; it begins with ``where`` they were found.
        """

    def note(self, labels: pl.Series, distinct: pl.Series) -> str | None:
        """How a target that was recognised was understood, where it could have been meant otherwise."""
        return None

    @abstractmethod
    def described(self, target: Target) -> str:
        """What is predicted, in a few words."""

    def strata(self, values: np.ndarray) -> np.ndarray | None:
        """A number a row, of which each fold gets its share; None where rows are drawn without regard to the target."""
        return None

    def facts(self, values: np.ndarray, num_classes: int) -> dict[str, Any]:
        """What losses and weightings may need of the targets of the rows that they are fitted on."""
        return {}

    def training_facts(
        self, values: np.ndarray, rows: np.ndarray, num_classes: int = 0, num_groups: int = 0
    ) -> dict[str, Any]:
        """All that losses and weightings may need of the rows that they are fitted on.

        Args:
            values: All targets.
            rows: The rows that are fitted on.
            num_classes: How many classes there are, 0 where the target is no class.
            num_groups: How many groups there are, 0 where none are named.
        """
        counted = {"num_samples": len(values), "num_groups": num_groups}
        return counted | self.facts(values[rows], num_classes)

    # Training

    def fits(self, kind: Kind) -> bool:
        """Whether losses for this kind of target can be trained on it."""
        return kind in self.kinds

    def tensor(self, values: np.ndarray) -> Tensor:
        """The targets as the engine takes them."""
        return torch.from_numpy(values).to(self.dtype)

    def outputs(self, loss: Loss | BatchLoss, y: Tensor) -> int:
        """How many outputs a network needs for this loss and these targets."""
        return loss.output_size(1)

    def scale(self, kind: Kind, y: Tensor, rows: Tensor) -> TargetScale | None:
        """In what unit losses of this kind see the target, by the rows to fit on; None where they see it as it is."""
        return None

    @abstractmethod
    def head(self, loss: Loss | BatchLoss, outputs: int, scale: TargetScale | None) -> nn.Module:
        """What makes of the network's outputs ``(n, k)`` what :meth:`predicted` takes."""

    @abstractmethod
    def empty_head(self, kind: Kind, outputs: int) -> nn.Module:
        """The head of a saved model, with values to be loaded."""

    # Judging

    def default_metric(self, values: np.ndarray) -> Metric:
        """What decides, unless the user says so."""
        return self.metrics[0]

    def calibration(self, inner: tuple[Tensor, np.ndarray] | None) -> float | None:
        """The temperature that fits inner rows' outputs and targets best, 1 without rows; None if nothing has one."""
        return None

    @abstractmethod
    def predicted(self, outputs: Tensor, temperature: float = 1.0) -> np.ndarray:
        """What the metrics take: values ``(n,)``, or class probabilities ``(n, C)``, of the head's outputs."""

    def portrait(self, outputs: Tensor, temperature: float, values: np.ndarray) -> dict[str, Any]:
        """What one model's predictions on its test rows look like: what :meth:`panels` needs, as JSON has it."""
        return {}

    @abstractmethod
    def outside(self, table: np.ndarray, target: Target, train: np.ndarray, test: np.ndarray, seed: int) -> Tensor:
        """What gradient boosting, the line from outside, gives for the test rows in a head's stead."""

    # Handing over

    def probabilities(self, outputs: Tensor, temperature: float, name: str) -> np.ndarray:
        """Class probabilities ``(n, C)``.

        Raises:
            InputError: the target, which is called ``name``, is no class.
        """
        raise InputError(f"{name!r} is {self.title}: there are no class probabilities, use predict")

    def answers(self, predicted: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """The answer for each row ``(n,)``: a value, or a label as text."""
        return predicted

    def frame(self, predicted: np.ndarray, name: str, classes: Sequence[str]) -> pl.DataFrame:
        """The predictions of the target ``name`` as a table."""
        return pl.DataFrame({f"predicted_{name}": self.answers(predicted, classes)})

    def panels(self, portraits: Portraits, target: Target, reference: str) -> list[Panel]:
        """What the report shows of the predictions."""
        return []

    @abstractmethod
    def recipe(self, loss: Loss | BatchLoss) -> RecipeLines:
        """The lines of the recipe that depend on the task."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
