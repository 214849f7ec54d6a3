"""Any objective as a scikit-learn classifier or regressor: the same formula, networks and training as ``compare``.

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

from lossworks.checks import check_between
from lossworks.comparison.handover.model import ROWS_AT_ONCE, class_probabilities
from lossworks.comparison.models.architecture import Architecture, Factory
from lossworks.comparison.options import find_device
from lossworks.comparison.plan import (
    INNER_SHARE,
    REFERENCE,
    candidate_from_name,
    check_kind,
    default_training,
    inner_split,
    training_facts,
)
from lossworks.comparison.train.engine import Trained, train
from lossworks.comparison.train.evaluate import fitted_temperature
from lossworks.comparison.train.jobs import Job, Training
from lossworks.metrics.registry import Task, find_metric
from lossworks.objective import Objective
from lossworks.roles import Loss, Penalty, Perturbation, Weighting
from lossworks.weights import SampleWeights

__all__ = ["ObjectiveClassifier", "ObjectiveRegressor"]


class _FixedTimesWeights(Weighting):
    """A weighting times one fixed weight a training row."""

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
        """The products."""
        return self.fixed(losses, index=index) * self.weights(losses, index=index, group=group, target=target)


@dataclass(eq=False, repr=False)
class _ObjectiveEstimator(BaseEstimator):
    """What both estimators share: their parameters, the composed objective and its training."""

    loss: str | Loss = "CrossEntropyLoss"
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

    def _fit(self, X: np.ndarray, target: np.ndarray, sample_weight: np.ndarray, num_classes: int) -> np.ndarray:
        """Train on the rows that weigh something; the inner rows, empty where there are too few to keep any out."""
        task: Task = "real" if not num_classes else "binary" if num_classes == 2 else "multiclass"
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fit, inner = self._split(np.flatnonzero(sample_weight), target, bool(num_classes), seed)
        inner = _in_proportion(inner, sample_weight)
        scored = inner if len(inner) else fit
        objective = self._weighted(self._objective(task, training_facts(target, fit, num_classes)), sample_weight, fit)
        trained = train(
            _tensor(X),
            torch.from_numpy(target),
            [Job(objective, torch.from_numpy(fit), torch.from_numpy(scored), seed, contest=0)],
            Architecture(self.model, width=_plain(self.width)),
            self._training(len(fit)),
            find_metric(self.metric, task),
            device=find_device(self.device),
        )
        self._keep(trained)
        return inner

    def _split(
        self, rows: np.ndarray, target: np.ndarray, stratified: bool, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit on, with all classes among them, and inner rows; none where there are too few."""
        share = check_between("validation_fraction", _plain(self.validation_fraction), 0, 0.5, open_low=True)
        if len(rows) < 2:
            return rows, rows[:0]
        fit, inner = inner_split(rows, target, stratified, seed, share)
        if not stratified:
            return fit, inner
        known = np.isin(target[inner], target[fit])
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
        if not isinstance(self.loss, (str, Loss)):
            raise TypeError(f"loss must be a name from the catalog or a lossworks Loss, got {self.loss!r}")
        name, argument = (self.loss if isinstance(self.loss, str) else REFERENCE[task]), "loss"
        if isinstance(self.weights, str):
            name, argument = f"{name}+{self.weights}", "loss and weights"
        named = candidate_from_name(name, "", task, argument).objective(0, facts)
        if isinstance(self.loss, Loss):
            check_kind("loss", type(self.loss).__name__, type(self.loss), task)
        given = None if isinstance(self.weights, str) else self.weights
        for role, part, other in (("weights", named.weights, given), ("perturb", named.perturb, self.perturb)):
            if part is not None and other is not None:
                raise ValueError(f"{role}: {name!r} names {type(part).__name__} already, got also {other!r}")
        return Objective(
            self.loss if isinstance(self.loss, Loss) else named.loss,
            weights=named.weights if given is None else given,
            perturb=named.perturb if self.perturb is None else self.perturb,
            penalties=[*named.penalties, *self.penalties],
        )

    def _weighted(self, objective: Objective, sample_weight: np.ndarray, fit: np.ndarray) -> Objective:
        """The objective with the rows' own weights in it, which have mean 1 over the rows to fit on."""
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
        """Of rows as they came to ``predict``."""
        check_is_fitted(self)
        return self._forward(validate_data(self, X, dtype=np.float32, reset=False))

    def _forward(self, X: np.ndarray) -> Tensor:
        # In float64 a row's outputs do not depend on the rows beside it, as they do in float32's matrix products.
        with torch.inference_mode():
            return torch.cat([self.module_(rows.double()) for rows in _tensor(X).split(ROWS_AT_ONCE)])


@dataclass(eq=False, repr=False)
class ObjectiveClassifier(ClassifierMixin, _ObjectiveEstimator):
    """A network trained with any objective for classes, as a scikit-learn classifier.

    Inputs are scaled robustly, and a share of the rows, stratified where possible, is kept out of training: on these
    inner rows training is stopped early and the temperature of the probabilities is fitted, so that
    :meth:`predict_proba` is calibrated whatever the loss. Two fits with one ``random_state`` are equal.

    Args:
        loss: A name from the catalog, parts joined by ``+`` (``"LDRLoss+ClassBalanced"``) in their first setting, what
            they need of the training rows filled in; or a :class:`~lossworks.Loss`.
        weights: A weighting's name from the catalog, or a :class:`~lossworks.Weighting`. A weight per row given to
            :meth:`fit` multiplies it.
        perturb: A :class:`~lossworks.Perturbation` of the scaled inputs.
        penalties: Any number of :class:`~lossworks.Penalty`.
        model: ``"mlp"`` (two hidden layers), ``"linear"``, or a factory ``(input_shape, outputs) -> nn.Module``.
        width: Hidden units of the MLP, >= 1.
        batch_size: Rows a step, >= 1; by default by the number of rows.
        max_steps: Steps at most, >= 1; by default by the number of rows.
        lr: AdamW's learning rate, > 0.
        weight_decay: AdamW's weight decay, >= 0.
        metric: What is scored on the inner rows: ``"log_loss"`` (at its best temperature), ``"accuracy"``,
            ``"balanced_accuracy"``, ``"macro_f1"``, or with two classes ``"auroc"`` or ``"average_precision"``.
        early_stopping: Whether to stop when the score no longer improves, and keep the best state; otherwise all steps
            are taken and the last state is kept.
        validation_fraction: The share of the rows that is kept out, in (0, 0.5]; at most 10,000 rows.
        patience: Scores in a row that may fail to improve, >= 1.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``. It trains there; predictions are made on the CPU.
        random_state: Of the inner rows, the initial weights and the order of rows.

    Attributes:
        classes_: The labels, in the order of the probabilities.
        n_features_in_: How many columns.
        feature_names_in_: Their names, where ``X`` had names.
        module_: The trained network in float64, scaling included: from rows to logits.
        temperature_: What the logits are divided by; 1 where there were too few rows to keep any out.
        validation_steps_: The steps after which the inner rows were scored.
        validation_scores_: The scores, larger is better (a log-loss is negative).
        best_step_: When the score was best, which is the state that was kept.
        best_validation_score_: That score.
        n_iter_: How many steps were taken.

    Raises:
        ValueError: fewer than two classes among the rows that weigh something; a parameter out of range; data that
            scikit-learn refuses.
        TypeError: a part in the wrong role.

    Use it where code already speaks scikit-learn: pipelines, grid searches, stacking. To learn which objective is
    better on your data, use :func:`lossworks.compare`.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> classifier = ObjectiveClassifier("FocalLoss", model="linear", lr=0.05, random_state=0).fit(X, X[:, 0] > 0)
    >>> classifier.predict([[2.0, 0.0], [-2.0, 0.0]])
    array([ True, False])
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on rows ``X`` ``(n, d)`` with labels ``y`` ``(n,)``.

        Args:
            X: Finite numbers.
            y: Labels of any type.
            sample_weight: One weight a row, >= 0, in any unit. Rows of weight 0 are left out.
        """
        table, labels = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        weight = _weights_of(sample_weight, table)
        target = np.zeros(len(table), dtype=np.int64)
        self.classes_, target[weight > 0] = np.unique(labels[weight > 0], return_inverse=True)
        if len(self.classes_) < 2:
            where = "" if sample_weight is None else ", among rows with a positive sample_weight"
            raise ValueError(f"y must have two classes or more{where}, got one class: {self.classes_.tolist()[0]!r}")
        inner = self._fit(table, target, weight, len(self.classes_))
        self.temperature_ = fitted_temperature(self._forward(table[inner]), target[inner]) if len(inner) else 1.0
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """The calibrated class probabilities ``(n, C)``, in the order of ``classes_``."""
        return class_probabilities(self._outputs(X), self.temperature_).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable label of each row ``(n,)``."""
        answers = self.predict_proba(X).argmax(axis=1)
        return self.classes_[answers]


@dataclass(eq=False, repr=False)
class ObjectiveRegressor(RegressorMixin, _ObjectiveEstimator):
    """A network trained with any objective for real targets, as a scikit-learn regressor.

    Inputs are scaled robustly and the target is standardised, so what a loss measures in the target's unit (the delta
    of ``HuberLoss``, the range of ``HLGaussLoss``) is in standard deviations. A share of the rows is kept out of
    training, to stop it early. Two fits with one ``random_state`` are equal.

    Args:
        loss: A name from the catalog, parts joined by ``+`` in their first setting, what they need of the training rows
            filled in; or a :class:`~lossworks.Loss`.
        weights: A weighting's name from the catalog, or a :class:`~lossworks.Weighting`. A weight per row given to
            :meth:`fit` multiplies it.
        perturb: A :class:`~lossworks.Perturbation` of the scaled inputs.
        penalties: Any number of :class:`~lossworks.Penalty`.
        model: ``"mlp"`` (two hidden layers), ``"linear"``, or a factory ``(input_shape, outputs) -> nn.Module``.
        width: Hidden units of the MLP, >= 1.
        batch_size: Rows a step, >= 1; by default by the number of rows.
        max_steps: Steps at most, >= 1; by default by the number of rows.
        lr: AdamW's learning rate, > 0.
        weight_decay: AdamW's weight decay, >= 0.
        metric: What is scored on the inner rows: ``"rmse"``, ``"mae"`` or ``"r2"``.
        early_stopping: Whether to stop when the score no longer improves, and keep the best state; otherwise all steps
            are taken and the last state is kept.
        validation_fraction: The share of the rows that is kept out, in (0, 0.5]; at most 10,000 rows.
        patience: Scores in a row that may fail to improve, >= 1.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``. It trains there; predictions are made on the CPU.
        random_state: Of the inner rows, the initial weights and the order of rows.

    Attributes:
        n_features_in_: How many columns.
        feature_names_in_: Their names, where ``X`` had names.
        module_: The trained network in float64, scaling included: from rows to values in the target's unit.
        validation_steps_: The steps after which the inner rows were scored.
        validation_scores_: The scores, larger is better (an RMSE is negative).
        best_step_: When the score was best, which is the state that was kept.
        best_validation_score_: That score.
        n_iter_: How many steps were taken.

    Raises:
        ValueError: a parameter out of range; data that scikit-learn refuses.
        TypeError: a part in the wrong role.

    Use it where code already speaks scikit-learn: pipelines, grid searches, stacking. To learn which objective is
    better on your data, use :func:`lossworks.compare`.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> regressor = ObjectiveRegressor("HuberLoss", lr=0.01, random_state=0).fit(X, 5 * X[:, 0])
    >>> regressor.predict([[1.0, 0.0]]).round()
    array([5.])
    """

    loss: str | Loss = "SquaredLoss"
    metric: str = field(default="rmse", kw_only=True)

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on rows ``X`` ``(n, d)`` with values ``y`` ``(n,)``.

        Args:
            X: Finite numbers.
            y: Finite numbers.
            sample_weight: One weight a row, >= 0, in any unit. Rows of weight 0 are left out.
        """
        table, values = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        self._fit(table, values.astype(np.float64), _weights_of(sample_weight, table), num_classes=0)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The value of each row ``(n,)``."""
        return self._outputs(X).numpy()


def _plain(value: Any) -> Any:
    """NumPy's numbers, as searches over parameters draw them, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _tensor(X: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def _weights_of(sample_weight: ArrayLike | None, X: np.ndarray) -> np.ndarray:
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def _in_proportion(rows: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
    """As many of the rows, each as often as it weighs; all of them once where their weights are equal."""
    reached = np.cumsum(sample_weight[rows])
    wanted = (np.arange(len(rows)) + 0.5) / max(len(rows), 1) * sample_weight[rows].sum()
    return rows[np.searchsorted(reached, wanted)]
