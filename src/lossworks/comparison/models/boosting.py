"""The outside line: histogram gradient boosting on the same folds, in the table and never hidden."""

import warnings

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits
from torch import Tensor

from lossworks.comparison.plan import Split, derive_seed
from lossworks.comparison.read.dataset import Dataset

SMALL = 20_000
"""Up to so many rows one thread is faster: the trees' many short parallel loops wait for each other."""


def boosted_outputs(dataset: Dataset, x: Tensor, split: Split, seed: int) -> Tensor:
    """Log-probabilities ``(m, C)``, or values ``(m,)``, of the split's test rows, fitted on all its training rows."""
    rows = np.concatenate([split.fit, split.inner])
    table = x.flatten(1).numpy()
    with threadpool_limits(1 if len(rows) <= SMALL else None):
        return _fitted(dataset, table, rows, split, seed)


def _fitted(dataset: Dataset, table: np.ndarray, rows: np.ndarray, split: Split, seed: int) -> Tensor:
    state = derive_seed(seed, "gradient boosting", split.fold, split.repeat)
    if dataset.task == "real":
        regressor = HistGradientBoostingRegressor(random_state=state).fit(table[rows], dataset.target[rows])
        return torch.from_numpy(regressor.predict(table[split.test]))
    with warnings.catch_warnings():  # that many classes look like values: the task is what the run says it is
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        classifier = HistGradientBoostingClassifier(random_state=state).fit(table[rows], dataset.target[rows])
    found = classifier.predict_proba(table[split.test])
    probabilities = np.full((len(split.test), len(dataset.classes)), np.finfo(np.float32).tiny)
    probabilities[:, classifier.classes_] = np.maximum(found, np.finfo(np.float32).tiny)
    return torch.from_numpy(np.log(probabilities))
