"""The outside line: histogram gradient boosting on the same folds, which is always shown in the table."""

import warnings

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["boosted_classes", "boosted_values"]

SMALL = 20_000
"""The number of rows up to which one thread is faster, because the trees' many short parallel loops cost waiting."""
TINY = np.finfo(np.float32).tiny


def boosted_classes(
    table: np.ndarray, target: np.ndarray, train: np.ndarray, test: np.ndarray, num_classes: int, seed: int
) -> Tensor:
    """Fit boosted trees on the training rows, and return the log-probabilities ``(m, C)`` of the test rows.

    Args:
        table: The encoded columns ``(n, d)``.
        target: The class codes ``(n,)``.
        train: The numbers of the training rows.
        test: The numbers of the test rows.
        num_classes: The number of classes; some may have no training rows.
        seed: The seed of the trees.
    """
    with threadpool_limits(_threads(train)), warnings.catch_warnings():  # scikit-learn warns if there are many classes
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
    """Fit boosted trees on the training rows by this loss of scikit-learn's; return the test rows' values ``(m,)``."""
    with threadpool_limits(_threads(train)):
        regressor = HistGradientBoostingRegressor(loss=loss, random_state=seed).fit(table[train], target[train])
        return torch.from_numpy(regressor.predict(table[test]))


def _threads(train: np.ndarray) -> int | None:
    return 1 if len(train) <= SMALL else None
