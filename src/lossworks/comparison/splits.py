"""The splits of the rows: repeated folds with test rows, and within the training rows of each the inner rows."""

import hashlib
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit

__all__ = ["INNER_MOST", "INNER_SHARE", "Split", "derive_seed", "inner_split", "make_splits"]

INNER_SHARE = 0.15
INNER_MOST = 10_000


@dataclass(frozen=True)
class Split:
    """One fold of one repeat: rows to fit on, inner rows (which stop training and choose the setting) and test rows."""

    fold: int
    repeat: int
    fit: np.ndarray
    inner: np.ndarray
    test: np.ndarray


def make_splits(rows: int, strata: np.ndarray | None, folds: int, repeats: int, seed: int) -> tuple[Split, ...]:
    """Draw repeated folds of this many rows; every stratum has its share in each fold and in its inner rows."""
    splits = []
    for repeat in range(repeats):
        draw = derive_seed(seed, "folds", repeat)
        folder = (KFold if strata is None else StratifiedKFold)(folds, shuffle=True, random_state=draw)
        for fold, (train, test) in enumerate(folder.split(np.arange(rows), strata)):
            fit, inner = inner_split(train, strata, derive_seed(seed, "inner", repeat, fold))
            splits.append(Split(fold, repeat, fit, inner, test))
    return tuple(splits)


def inner_split(
    rows: np.ndarray, strata: np.ndarray | None, seed: int, share: float = INNER_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows into rows to fit on and inner rows.

    Each stratum has its share in both, if every stratum has two rows or more.

    Args:
        rows: The numbers of the rows to divide.
        strata: The stratum of every row of the data, not of these alone; None if there are no strata.
        seed: The seed of the draw.
        share: The share of the rows that become inner rows, at most 10,000 rows.
    """
    size = min(max(round(share * len(rows)), 1), INNER_MOST)
    own = None if strata is None else strata[rows]
    if own is not None:
        present, counts = np.unique(own, return_counts=True)
        own = own if counts.min() >= 2 and size >= len(present) else None
    splitter = (ShuffleSplit if own is None else StratifiedShuffleSplit)(1, test_size=size, random_state=seed)
    fit, inner = next(splitter.split(rows, own))
    return rows[np.sort(fit)], rows[np.sort(inner)]


def derive_seed(*parts_of_it: object) -> int:
    """Derive a seed from names and numbers; it is the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts_of_it).encode()).digest()[:4], "little") >> 1
