"""The base class of the tasks: a task says how a target is read, trained on, judged and handed over."""

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
"""A mapping from the name of each objective to the portraits of its trained models."""


@dataclass(frozen=True)
class Target:
    """The target column after it was read: what is to be predicted.

    Attributes:
        values: The class codes ``(n,)``, int64, or the values ``(n,)``, float64.
        classes: The labels as text, in the order of their codes; empty if the target is not a class.
    """

    values: np.ndarray
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeLines:
    """The lines that depend on the task in ``recipe.py``, the script that trains the winner in a plain loop.

    Attributes:
        target: The code that computes ``y``, the targets as the loss takes them, from ``dataset.target`` and the
            training rows ``fit``.
        error_name: The name of the error that is measured on the inner rows.
        error: The expression that computes this error from ``predicted``, ``y`` and ``inner``; a number, lower is
            better.
        facts: For each fact about the training rows that a part may need, the expression that computes it.
    """

    target: str
    error_name: str
    error: str
    facts: Mapping[str, str] = field(default_factory=dict)


class Task(ABC):
    """Base class of the tasks, such as binary classification; a task has no state, so objects of one class are equal.

    Class attributes:
        name: The task's name on the command line and in saved files.
        title: A description of the target for error messages, such as ``"real-valued"``.
        order: The tasks are asked in ascending order of this number whether they recognise a target.
        kinds: The kinds of target of the losses that can be trained on this task.
        reference: The name in the catalog of the loss that the others are compared with.
        metrics: The metrics that are reported, in the order of the tables. The first one decides unless
            :meth:`default_metric` chooses another.
        troubles: The troubles, in the catalog's words, that any data set of this task may have. For each of them, a
            loss that helps with it is always tried.
        has_classes: Whether the target is a class, so that a prediction is right or wrong and can be attacked.
        spreads: Whether the target is a number that is examined for outliers and heavy tails.
        dtype: The dtype of the target in training.
        splitting: How the folds are drawn, as the report's text that follows "drawn 2 times".
        calibrating: How predictions are calibrated before they are scored, as a sentence of the report.
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
        """Whether this task is chosen for these target values unless the user names a task.

        ``distinct`` holds the different values among ``labels``, sorted.
        """
        return False

    @abstractmethod
    def read(self, labels: pl.Series, distinct: pl.Series, where: str) -> Target:
        """Read the target from these values; ``distinct`` holds the different values among them, sorted.

        Raises:
            InputError: the values cannot be a target of this task; the message begins with ``where``, the place that
                they come from.
        """

    def note(self, labels: pl.Series, distinct: pl.Series) -> str | None:
        """A note on how a recognised target was understood, or None if it can only be understood in one way."""
        return None

    @abstractmethod
    def described(self, target: Target) -> str:
        """Describe what is predicted in a few words."""

    def strata(self, values: np.ndarray) -> np.ndarray | None:
        """The stratum of each row ``(n,)``, of which each fold gets its share; None if folds ignore the target."""
        return None

    def facts(self, values: np.ndarray, num_classes: int) -> dict[str, Any]:
        """The facts about the targets of the training rows that losses and weightings may need, by argument name."""
        return {}

    def training_facts(
        self, values: np.ndarray, rows: np.ndarray, num_classes: int = 0, num_groups: int = 0
    ) -> dict[str, Any]:
        """All facts about the training rows that losses and weightings may need, by argument name.

        Args:
            values: The targets of all rows.
            rows: The numbers of the training rows.
            num_classes: The number of classes, 0 if the target is not a class.
            num_groups: The number of groups, 0 if no groups are named.
        """
        counted = {"num_samples": len(values), "num_groups": num_groups}
        return counted | self.facts(values[rows], num_classes)

    # Training

    def fits(self, kind: Kind) -> bool:
        """Whether losses for this kind of target can be trained on this task."""
        return kind in self.kinds

    def tensor(self, values: np.ndarray) -> Tensor:
        """The targets as a tensor of the task's dtype, as the engine takes them."""
        return torch.from_numpy(values).to(self.dtype)

    def outputs(self, loss: Loss | BatchLoss, y: Tensor) -> int:
        """The number of outputs that a network needs for this loss and these targets."""
        return loss.output_size(1)

    def scale(self, kind: Kind, y: Tensor, rows: Tensor) -> TargetScale | None:
        """How the target is scaled for losses of this kind, fitted on the training rows; None if it is not scaled."""
        return None

    @abstractmethod
    def head(self, loss: Loss | BatchLoss, outputs: int, scale: TargetScale | None) -> nn.Module:
        """The module that turns the network's outputs ``(n, k)`` into the input of :meth:`predicted`."""

    @abstractmethod
    def empty_head(self, kind: Kind, outputs: int) -> nn.Module:
        """A head with placeholder values, into which the state of a saved model is loaded."""

    # Judging

    def default_metric(self, values: np.ndarray) -> Metric:
        """The metric that decides unless the user names one."""
        return self.metrics[0]

    def calibration(self, inner: tuple[Tensor, np.ndarray] | None) -> float | None:
        """The temperature that best fits the outputs and targets of the inner rows.

        It is 1 if there are no inner rows, and None if the task's predictions have no temperature.
        """
        return None

    @abstractmethod
    def predicted(self, outputs: Tensor, temperature: float = 1.0) -> np.ndarray:
        """Turn the head's outputs into what the metrics take: values ``(n,)`` or class probabilities ``(n, C)``."""

    def portrait(self, outputs: Tensor, temperature: float, values: np.ndarray) -> dict[str, Any]:
        """Summarise one model's predictions on its test rows, as JSON values, for :meth:`panels`."""
        return {}

    @abstractmethod
    def outside(self, table: np.ndarray, target: Target, train: np.ndarray, test: np.ndarray, seed: int) -> Tensor:
        """Fit gradient boosting, the outside line, and return its outputs for the test rows in the form of a head's."""

    # Handing over

    def probabilities(self, outputs: Tensor, temperature: float, name: str) -> np.ndarray:
        """The class probabilities ``(n, C)``.

        Raises:
            InputError: the target, whose name is ``name``, is not a class.
        """
        raise InputError(f"{name!r} is {self.title}: there are no class probabilities, use predict")

    def answers(self, predicted: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """The prediction for each row ``(n,)``: a value, or a label as text."""
        return predicted

    def frame(self, predicted: np.ndarray, name: str, classes: Sequence[str]) -> pl.DataFrame:
        """The predictions of the target ``name`` as a table."""
        return pl.DataFrame({f"predicted_{name}": self.answers(predicted, classes)})

    def panels(self, portraits: Portraits, target: Target, reference: str) -> list[Panel]:
        """The panels in which the report shows the predictions."""
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
