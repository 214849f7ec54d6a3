"""The outside line: histogram gradient boosting on the same folds, in the table and never hidden."""

import warnings

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["boosted_classes", "boosted_values"]

SMALL = 20_000
"""Up to so many rows one thread is faster: the trees' many short parallel loops wait for each other."""
TINY = np.finfo(np.float32).tiny


def boosted_classes(
    table: np.ndarray, target: np.ndarray, train: np.ndarray, test: np.ndarray, num_classes: int, seed: int
) -> Tensor:
    """Log-probabilities ``(m, C)`` of the test rows, fitted on the training rows.

    Args:
        table: Encoded columns ``(n, d)``.
        target: Class codes ``(n,)``.
        train: The rows to fit on.
        test: The rows to predict.
        num_classes: How many classes there are, whether or not all have training rows.
        seed: Of the trees.
    """
    with threadpool_limits(_threads(train)), warnings.catch_warnings():  # so many classes look like values
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        classifier = HistGradientBoostingClassifier(random_state=seed).fit(table[train], target[train])
        found = classifier.predict_proba(table[test])
    probabilities = np.full((len(test), num_classes), TINY)
    probabilities[:, classifier.classes_] = np.maximum(found, TINY)
    return torch.from_numpy(np.log(probabilities))


def boosted_values(
    table: np.ndarray,
    target: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    *,
    loss: str = "squared_error",
) -> Tensor:
    """Values ``(m,)`` of the test rows, fitted on the training rows by this loss of scikit-learn's."""
    with threadpool_limits(_threads(train)):
        regressor = HistGradientBoostingRegressor(loss=loss, random_state=seed).fit(table[train], target[train])
        return torch.from_numpy(regressor.predict(table[test]))


def _threads(train: np.ndarray) -> int | None:
    return 1 if len(train) <= SMALL else None
