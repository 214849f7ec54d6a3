"""scikit-learn estimators trained with any objective: the same formula, networks and training as in ``compare``.

>>> from sklearn.datasets import load_iris
>>> X, y = load_iris(return_X_y=True)
>>> ObjectiveClassifier("LDRLoss", max_steps=200, random_state=0).fit(X, y).score(X, y) > 0.9
True
"""

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from lossworks.checks import check_between, shown
from lossworks.comparison.candidates import candidate_from_name, check_kind
from lossworks.comparison.handover.model import ROWS_AT_ONCE
from lossworks.comparison.models.architecture import Architecture, Factory
from lossworks.comparison.options import find_device
from lossworks.comparison.plan import default_training
from lossworks.comparison.splits import INNER_SHARE, inner_split
from lossworks.comparison.tasks.base import Task
from lossworks.comparison.tasks.binary import Binary
from lossworks.comparison.tasks.classes import class_probabilities
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.tasks.real import Real
from lossworks.comparison.train.engine import Trained, train
from lossworks.comparison.train.jobs import Job, Training
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Penalty, Perturbation, Weighting
from lossworks.weights import SampleWeights

__all__ = ["ObjectiveClassifier", "ObjectiveRegressor"]


class _FixedTimesWeights(Weighting):
    """The product of a weighting and of fixed weights, one for each training row."""

    needs_index = True
    over_data_set = True

    def __init__(self, fixed: SampleWeights, weights: Weighting) -> None:
        super().__init__()
        self.fixed, self.weights = fixed, weights

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """Return the product for each row."""
        return self.fixed(losses, index=index) * self.weights(losses, index=index, group=group, target=target)


@dataclass(eq=False, repr=False)
class _ObjectiveEstimator(BaseEstimator):
    """The base of both estimators: their parameters, how the objective is composed, and how it is trained."""

    loss: str | Loss | BatchLoss = "CrossEntropyLoss"
    _: KW_ONLY
    weights: str | Weighting | None = None
    perturb: Perturbation | None = None
    penalties: Sequence[Penalty] = ()
    model: str | Factory = "mlp"
    width: int = 64
    batch_size: int | None = None
    max_steps: int | None = None
    lr: float = 1e-3
    weight_decay: float = 1e-2
    metric: str = "log_loss"
    early_stopping: bool = True
    validation_fraction: float = INNER_SHARE
    patience: int = 10
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    random_state: int | np.random.RandomState | None = None

    def _fit(
        self, task: Task, X: np.ndarray, target: np.ndarray, sample_weight: np.ndarray, num_classes: int = 0
    ) -> np.ndarray:
        """Train on the rows of positive weight, and return the inner rows, none if too few can be kept out."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fit, inner = self._split(np.flatnonzero(sample_weight), task.strata(target), seed)
        inner = _in_proportion(inner, sample_weight)
        scored = inner if len(inner) else fit
        facts = task.training_facts(target, fit, num_classes)
        objective = self._weighted(self._objective(task, facts), sample_weight, fit)
        trained = train(
            _tensor(X),
            torch.from_numpy(target),
            [Job(objective, torch.from_numpy(fit), torch.from_numpy(scored), seed, contest=0)],
            Architecture(self.model, width=_plain(self.width)),
            self._training(len(fit)),
            find_metric(self.metric, task.metrics),
            task=task,
            device=find_device(self.device),
        )
        self._keep(trained)
        return inner

    def _split(self, rows: np.ndarray, strata: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit on, with all classes among them, and inner rows; none where there are too few."""
        share = check_between("validation_fraction", _plain(self.validation_fraction), 0, 0.5, open_low=True)
        if len(rows) < 2:
            return rows, rows[:0]
        fit, inner = inner_split(rows, strata, seed, share)
        if strata is None:
            return fit, inner
        known = np.isin(strata[inner], strata[fit])
        return np.concatenate([fit, inner[~known]]), inner[known]

    def _training(self, rows: int) -> Training:
        usual = default_training(rows)
        steps = usual.max_steps if self.max_steps is None else _plain(self.max_steps)
        return Training(
            batch_size=usual.batch_size if self.batch_size is None else _plain(self.batch_size),
            max_steps=steps,
            eval_every=max(steps // 40, 10) if self.early_stopping else steps,
            patience=_plain(self.patience),
            lr=_plain(self.lr),
            weight_decay=_plain(self.weight_decay),
        )

    def _objective(self, task: Task, facts: dict[str, Any]) -> Objective:
        """The parts that were named, with what they need of the training rows, and those that were given."""
        if not isinstance(self.loss, (str, Loss, BatchLoss)):
            raise TypeError(f"loss must be a name from the catalog or a lossworks Loss, got {shown(self.loss)}")
        name, argument = (self.loss if isinstance(self.loss, str) else task.reference), "loss"
        if isinstance(self.weights, str):
            name, argument = f"{name}+{self.weights}", "loss and weights"
        named = candidate_from_name(name, "", task, argument).objective(0, facts)
        if not isinstance(self.loss, str):
            check_kind("loss", type(self.loss).__name__, type(self.loss), task)
        given = None if isinstance(self.weights, str) else self.weights
        for role, part, other in (("weights", named.weights, given), ("perturb", named.perturb, self.perturb)):
            if part is not None and other is not None:
                raise ValueError(f"{role}: {name!r} names {type(part).__name__} already, got also {shown(other)}")
        return Objective(
            named.loss if isinstance(self.loss, str) else self.loss,
            weights=named.weights if given is None else given,
            perturb=named.perturb if self.perturb is None else self.perturb,
            penalties=[*named.penalties, *self.penalties],
        )

    def _weighted(self, objective: Objective, sample_weight: np.ndarray, fit: np.ndarray) -> Objective:
        """Put the rows' own weights, scaled to mean 1 over the rows to fit on, into the objective."""
        if not np.ptp(sample_weight[fit]):
            return objective
        weights = np.full(len(sample_weight), sample_weight[fit].mean())
        weights[fit] = sample_weight[fit]
        fixed = SampleWeights(torch.from_numpy(weights))
        objective.weights = fixed if objective.weights is None else _FixedTimesWeights(fixed, objective.weights)
        return objective

    def _keep(self, trained: Trained) -> None:
        if trained.best_step[0] == 0:
            message = (
                "training diverged before its first evaluation, the model is untrained: lower lr, or change the loss"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=4)
        steps, scores = zip(*trained.curves[0], strict=True)
        self.module_: nn.Module = trained.module(0).cpu().double()
        self.validation_steps_ = np.array(steps)
        self.validation_scores_ = np.array(scores)
        self.best_step_ = trained.best_step[0]
        self.best_validation_score_ = trained.best_score[0]
        self.n_iter_ = int(steps[-1])

    def _outputs(self, X: ArrayLike) -> Tensor:
        """Check rows as ``predict`` was given them, and return the network's outputs for them."""
        check_is_fitted(self)
        return self._forward(validate_data(self, X, dtype=np.float32, reset=False))

    def _forward(self, X: np.ndarray) -> Tensor:
        # In float32 matrix products a row's outputs depend on the rows beside it; in float64 they do not.
        with torch.inference_mode():
            return torch.cat([self.module_(rows.double()) for rows in _tensor(X).split(ROWS_AT_ONCE)])


@dataclass(eq=False, repr=False)
class ObjectiveClassifier(ClassifierMixin, _ObjectiveEstimator):
    """A network trained with any objective for classes, as a scikit-learn classifier.

    Inputs are scaled robustly. A share of the rows, the inner rows, is kept out of training (stratified by class if
    possible). Their scores decide when training stops early, and the temperature of the probabilities is fitted on
    them, so that :meth:`predict_proba` is calibrated whatever the loss. Two fits with the same ``random_state`` give
    the same network.

    Args:
        loss: A name from the catalog, or several joined by ``+`` (``"LDRLoss+ClassBalanced"``); these parts are taken
            in their first setting, with what they need from the training rows. Or a :class:`~lossworks.Loss`.
        weights: A weighting's name from the catalog, or a :class:`~lossworks.Weighting`. The ``sample_weight`` that
            :meth:`fit` is given multiplies its weights.
        perturb: A :class:`~lossworks.Perturbation`, which changes the scaled inputs.
        penalties: A sequence of any number of :class:`~lossworks.Penalty`.
        model: ``"mlp"`` (two hidden layers), ``"linear"``, or a factory ``(input_shape, outputs) -> nn.Module``.
        width: The number of hidden units in each layer of the MLP, >= 1.
        batch_size: How many rows a step uses, >= 1; by default it depends on the number of rows.
        max_steps: The largest number of steps, >= 1; by default it depends on the number of rows.
        lr: AdamW's learning rate, > 0.
        weight_decay: AdamW's weight decay, >= 0.
        metric: The score on the inner rows: ``"log_loss"`` (at its best temperature), ``"accuracy"``,
            ``"balanced_accuracy"``, ``"macro_f1"``, or with two classes ``"auroc"`` or ``"average_precision"``.
        early_stopping: If true, training stops when the score no longer improves, and the best state is kept; otherwise
            all steps are taken and the last state is kept.
        validation_fraction: The share of the rows that is kept out of training, in (0, 0.5]; at most 10,000 rows.
        patience: After how many scores in a row without an improvement training stops, >= 1.
        device: Where to train: ``"cpu"``, ``"cuda"`` or ``"auto"``. Predictions are always made on the CPU.
        random_state: The seed for the choice of inner rows, the initial weights and the order of rows.

    Attributes:
        classes_: The labels, in the order of the probabilities.
        n_features_in_: The number of columns.
        feature_names_in_: The names of the columns, if ``X`` had names.
        module_: The trained network in float64, with the scaling; it maps rows to logits.
        temperature_: The number that the logits are divided by; 1 if there were too few rows to keep any out.
        validation_steps_: The steps after which the inner rows were scored.
        validation_scores_: The scores at these steps; larger is better, so a log-loss is negated.
        best_step_: The step with the best score, whose state was kept.
        best_validation_score_: The score at that step.
        n_iter_: The number of steps that were taken.

    Raises:
        ValueError: fewer than two classes among the rows of positive weight; a parameter out of range; data that
            scikit-learn refuses.
        TypeError: a part that does not have the role of its argument.

    Use it with scikit-learn's own tools: pipelines, grid searches, stacking. To find out which objective is better on
    your data, use :func:`lossworks.compare`.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> classifier = ObjectiveClassifier("FocalLoss", model="linear", lr=0.05, random_state=0).fit(X, X[:, 0] > 0)
    >>> classifier.predict([[2.0, 0.0], [-2.0, 0.0]])
    array([ True, False])
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on rows ``X`` ``(n, d)`` with labels ``y`` ``(n,)``.

        Args:
            X: The inputs, finite numbers.
            y: The labels, of any type.
            sample_weight: One weight for each row, >= 0, in any unit. Rows of weight 0 are left out.
        """
        table, labels = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        weight = _weights_of(sample_weight, table)
        target = np.zeros(len(table), dtype=np.int64)
        self.classes_, target[weight > 0] = np.unique(labels[weight > 0], return_inverse=True)
        if len(self.classes_) < 2:
            where = "" if sample_weight is None else ", among rows with a positive sample_weight"
            raise ValueError(f"y must have two classes or more{where}, got one class: {self.classes_.tolist()[0]!r}")
        task = Binary() if len(self.classes_) == 2 else Multiclass()
        inner = self._fit(task, table, target, weight, len(self.classes_))
        scored = (self._forward(table[inner]), target[inner]) if len(inner) else None
        self.temperature_: float = task.calibration(scored) or 1.0
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the calibrated class probabilities ``(n, C)``, in the order of ``classes_``."""
        return class_probabilities(self._outputs(X), self.temperature_).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the most probable label of each row ``(n,)``."""
        answers = self.predict_proba(X).argmax(axis=1)
        return self.classes_[answers]


@dataclass(eq=False, repr=False)
class ObjectiveRegressor(RegressorMixin, _ObjectiveEstimator):
    """A network trained with any objective for real targets, as a scikit-learn regressor.

    Inputs are scaled robustly and the target is standardised. So an argument of a loss that has the target's unit (the
    delta of ``HuberLoss``, the range of ``HLGaussLoss``) is in standard deviations of the target. A share of the rows,
    the inner rows, is kept out of training; their scores decide when training stops early. Two fits with the same
    ``random_state`` give the same network.

    Args:
        loss: A name from the catalog, or several joined by ``+``; these parts are taken in their first setting, with
            what they need from the training rows. Or a :class:`~lossworks.Loss`.
        weights: A weighting's name from the catalog, or a :class:`~lossworks.Weighting`. The ``sample_weight`` that
            :meth:`fit` is given multiplies its weights.
        perturb: A :class:`~lossworks.Perturbation`, which changes the scaled inputs.
        penalties: A sequence of any number of :class:`~lossworks.Penalty`.
        model: ``"mlp"`` (two hidden layers), ``"linear"``, or a factory ``(input_shape, outputs) -> nn.Module``.
        width: The number of hidden units in each layer of the MLP, >= 1.
        batch_size: How many rows a step uses, >= 1; by default it depends on the number of rows.
        max_steps: The largest number of steps, >= 1; by default it depends on the number of rows.
        lr: AdamW's learning rate, > 0.
        weight_decay: AdamW's weight decay, >= 0.
        metric: The score on the inner rows: ``"rmse"``, ``"mae"`` or ``"r2"``.
        early_stopping: If true, training stops when the score no longer improves, and the best state is kept; otherwise
            all steps are taken and the last state is kept.
        validation_fraction: The share of the rows that is kept out of training, in (0, 0.5]; at most 10,000 rows.
        patience: After how many scores in a row without an improvement training stops, >= 1.
        device: Where to train: ``"cpu"``, ``"cuda"`` or ``"auto"``. Predictions are always made on the CPU.
        random_state: The seed for the choice of inner rows, the initial weights and the order of rows.

    Attributes:
        n_features_in_: The number of columns.
        feature_names_in_: The names of the columns, if ``X`` had names.
        module_: The trained network in float64, with the scaling; it maps rows to values in the target's unit.
        validation_steps_: The steps after which the inner rows were scored.
        validation_scores_: The scores at these steps; larger is better, so an RMSE is negated.
        best_step_: The step with the best score, whose state was kept.
        best_validation_score_: The score at that step.
        n_iter_: The number of steps that were taken.

    Raises:
        ValueError: a parameter out of range; data that scikit-learn refuses.
        TypeError: a part that does not have the role of its argument.

    Use it with scikit-learn's own tools: pipelines, grid searches, stacking. To find out which objective is better on
    your data, use :func:`lossworks.compare`.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> regressor = ObjectiveRegressor("HuberLoss", lr=0.01, random_state=0).fit(X, 5 * X[:, 0])
    >>> regressor.predict([[1.0, 0.0]]).round()
    array([5.])
    """

    loss: str | Loss | BatchLoss = "SquaredLoss"
    metric: str = field(default="rmse", kw_only=True)

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on rows ``X`` ``(n, d)`` with values ``y`` ``(n,)``.

        Args:
            X: The inputs, finite numbers.
            y: The targets, finite numbers.
            sample_weight: One weight for each row, >= 0, in any unit. Rows of weight 0 are left out.
        """
        table, values = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        self._fit(Real(), table, values.astype(np.float64), _weights_of(sample_weight, table))
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the predicted value of each row ``(n,)``, in the target's unit."""
        return self._outputs(X).numpy()


def _plain(value: Any) -> Any:
    """Turn a NumPy number, as parameter searches draw them, into a Python number."""
    return value.item() if isinstance(value, np.generic) else value


def _tensor(X: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def _weights_of(sample_weight: ArrayLike | None, X: np.ndarray) -> np.ndarray:
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def _in_proportion(rows: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
    """Return as many rows as given, each repeated in proportion to its weight; with equal weights, each row once."""
    reached = np.cumsum(sample_weight[rows])
    wanted = (np.arange(len(rows)) + 0.5) / max(len(rows), 1) * sample_weight[rows].sum()
    return rows[np.searchsorted(reached, wanted)]
