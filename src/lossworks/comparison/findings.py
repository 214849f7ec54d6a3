"""Findings: properties of the data that matter for the choice of an objective, in plain words with numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from scipy.stats import rankdata
from sklearn.metrics import r2_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier

from lossworks.checks import listed
from lossworks.comparison.read.dataset import Dataset

__all__ = ["Finding", "examine"]

IMBALANCED = 3.0
NOTABLE_NOISE = 0.05
CONFIDENT = 1.5
MANY_CLASSES = 50
NOTABLE_OUTLIERS = 0.001
HEAVY_TAIL = 4.0  # for (q97.5 - q2.5) / (q75 - q25); it is 2.9 for a normal and 4.2 for Student's t with 3 degrees
NEARLY_UNIQUE = 0.95
LEAKS = 0.98
SMALL_GROUP = 50

FOREST_ROWS, FOREST_CELLS, TREES = 20_000, 20_000_000, 100
LEAK_ROWS, LEAK_CELLS = 5_000, 2_000_000


@dataclass(frozen=True)
class Finding:
    """One property of the data that was found.

    Attributes:
        key: The short name of the finding.
        text: The finding in plain words, with its numbers.
        numbers: The same numbers as JSON values.
        helps: The troubles, in the catalog's words, that objectives should help with.
        level: ``"warning"`` if no result can be trusted before the user has looked into the finding; otherwise
            ``"notice"`` or ``"info"``.
    """

    key: str
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)
    helps: tuple[str, ...] = ()
    level: Literal["info", "notice", "warning"] = "info"


@dataclass(frozen=True)
class _View:
    """The data as the checks see it; the table is empty for images, whose columns are pixels."""

    dataset: Dataset
    matrix: np.ndarray
    table: pl.DataFrame
    seed: int

    @property
    def target(self) -> np.ndarray:
        return self.dataset.target

    def sample(self, most: int) -> np.ndarray:
        """Draw at most this many row numbers, and return them sorted."""
        rows = len(self.target)
        if rows <= most:
            return np.arange(rows)
        return np.sort(np.random.default_rng(self.seed).choice(rows, most, replace=False))


def examine(dataset: Dataset, matrix: np.ndarray, *, seed: int) -> tuple[Finding, ...]:
    """Examine a data set and return the findings, warnings first.

    Args:
        dataset: The data set as it was read.
        matrix: The encoded features.
        seed: The seed of the trees, and of the draw of rows if there are too many to look at all of them.
    """
    features = dataset.features
    if isinstance(features, np.ndarray):
        flat = features if features.ndim == 2 else features[:, :0, 0, 0]
        table = pl.DataFrame({f"column {i}": flat[:, i] for i in range(flat.shape[1])})
    else:
        table = features
    view = _View(dataset, matrix.reshape(len(matrix), -1), table, seed)
    found = [finding for check in CHECKS if (finding := check(view)) is not None]
    return tuple(sorted(found, key=lambda finding: ("warning", "notice", "info").index(finding.level)))


def _percent(share: float) -> str:
    """The share as a percentage, with more digits if it is small."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


def _columns(names: Sequence[str]) -> str:
    return f"Column{'s' * (len(names) > 1)} {listed(names, 5)}"


# The target


def _imbalance(view: _View) -> Finding | None:
    classes = view.dataset.classes
    if not classes:
        return None
    counts = np.bincount(view.target, minlength=len(classes))
    rarest, commonest = int(counts.argmin()), int(counts.argmax())
    ratio = float(counts[commonest] / counts[rarest])
    if ratio < IMBALANCED / 2:
        return None
    notable = ratio >= IMBALANCED
    return Finding(
        "imbalance",
        f"The most common class {classes[commonest]!r} has {counts[commonest]:,} rows, {ratio:.1f} times the "
        f"{counts[rarest]:,} of the rarest, {classes[rarest]!r}.",
        {
            "ratio": ratio,
            "rarest": classes[rarest],
            "rarest_count": int(counts[rarest]),
            "commonest": classes[commonest],
            "commonest_count": int(counts[commonest]),
        },
        ("imbalance",) if notable else (),
        "notice" if notable else "info",
    )


def _many_classes(view: _View) -> Finding | None:
    if (number := len(view.dataset.classes)) < MANY_CLASSES:
        return None
    text = f"There are {number} classes, with {len(view.target) / number:.0f} rows each on average."
    return Finding("many classes", text, {"classes": number}, ("many classes", "top-k"), "notice")


def _label_noise(view: _View) -> Finding | None:
    """Find label noise by confident learning.

    A row's label is contradicted by another class if that class is at least as probable on the row as it is on average
    on the rows that carry it as their label. The class must also be clearly more probable than the row's own label, so
    that fewer rows are blamed if classes merely overlap.
    """
    names = view.dataset.classes
    if not names:
        return None
    rows = view.sample(min(FOREST_ROWS, max(500, FOREST_CELLS // view.matrix.shape[1])))
    labels, classes = view.target[rows], len(names)
    probabilities = _out_of_bag(view.matrix[rows], labels, classes, view.seed)
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, weights=own, minlength=classes) / np.maximum(counts, 1)
    confident = np.where((probabilities >= thresholds) & (counts > 0), probabilities, -1)
    rivals = confident.argmax(axis=1)
    contradicted = (rivals != labels) & (confident.max(axis=1) > CONFIDENT * own)
    share = float(contradicted.mean())
    if share < NOTABLE_NOISE:
        return None
    pairs = np.bincount(labels[contradicted] * classes + rivals[contradicted])
    given, expected = divmod(int(pairs.argmax()), classes)
    return Finding(
        "label noise",
        f"About {_percent(share)} of the labels ({contradicted.sum():,} of {len(labels):,} rows looked at) are "
        f"confidently contradicted by trees that did not see the row, most often {names[given]!r} where "
        f"{names[expected]!r} is expected ({pairs.max():,}): labels are wrong, or classes overlap.",
        {
            "share": share,
            "contradicted": int(contradicted.sum()),
            "rows": len(labels),
            "given": names[given],
            "expected": names[expected],
            "given_for_expected": int(pairs.max()),
        },
        ("noisy labels",),
        "notice",
    )


def _out_of_bag(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """The class probabilities of each row by the random trees that were not trained on it.

    Only one tree is in memory at a time, and its leaves get larger with the number of rows and classes, so that time
    and memory stay bounded.
    """
    rng = np.random.default_rng(seed)
    rows = len(x)
    leaf = max(1, rows // 4_000, rows * classes // 1_000_000)
    known = np.isfinite(x)
    means = np.where(known, x, 0).sum(axis=0, dtype=np.float64) / np.maximum(known.sum(axis=0), 1)
    x = np.where(known, x, means).astype(np.float32)
    total, votes = np.zeros((rows, classes)), np.zeros((rows, 1))
    for _ in range(TREES):
        drawn = rng.integers(rows, size=rows)
        unseen = np.flatnonzero(np.bincount(drawn, minlength=rows) == 0)
        if not len(unseen):
            continue
        tree = ExtraTreeClassifier(max_features="sqrt", min_samples_leaf=leaf, random_state=int(rng.integers(2**31)))
        tree.fit(x[drawn], y[drawn])
        total[np.ix_(unseen, tree.classes_)] += tree.predict_proba(x[unseen])
        votes[unseen] += 1
    return total / np.maximum(votes, 1)


def _outliers(view: _View) -> Finding | None:
    if not view.dataset.task.spreads:
        return None
    q1, q3 = (float(q) for q in np.quantile(view.target, [0.25, 0.75]))
    reach = 3 * (q3 - q1)
    outside = (view.target < q1 - reach) | (view.target > q3 + reach)
    share = float(outside.mean())
    if not reach or share < NOTABLE_OUTLIERS:
        return None
    furthest = float(view.target[np.abs(view.target - (q1 + q3) / 2).argmax()])
    lie = "value of {!r} ({}) lies" if outside.sum() == 1 else "values of {!r} ({}) lie"
    return Finding(
        "outliers",
        f"{outside.sum():,} {lie.format(view.dataset.target_name, _percent(share))} more than 3 interquartile "
        f"ranges outside the middle half ({q1:.4g} to {q3:.4g}); the furthest is {furthest:.4g}.",
        {"share": share, "count": int(outside.sum()), "q25": q1, "q75": q3, "furthest": furthest},
        ("outliers",),
        "notice",
    )


def _tails(view: _View) -> Finding | None:
    if not view.dataset.task.spreads:
        return None
    name = view.dataset.target_name
    low, q1, q3, high = (float(q) for q in np.quantile(view.target, [0.025, 0.25, 0.75, 0.975]))
    if q1 == q3:
        share = float((view.target == q1).mean())
        text = f"{_percent(share)} of the values of {name!r} are {q1:.4g}: the whole middle half is one value."
        return Finding("spike", text, {"share": share, "value": q1}, ("outliers", "heavy tails"), "notice")
    ratio = (high - low) / (q3 - q1)
    if ratio < HEAVY_TAIL:
        return None
    return Finding(
        "heavy tails",
        f"The middle 95 % of {name!r} is {ratio:.1f} times as wide as the middle half (2.9 times in a normal "
        "distribution): its tails are heavy.",
        {"ratio": ratio, "q2.5": low, "q25": q1, "q75": q3, "q97.5": high},
        ("heavy tails",),
        "notice",
    )


def _small_groups(view: _View) -> Finding | None:
    if view.dataset.group is None:
        return None
    counts = np.bincount(view.dataset.group, minlength=len(view.dataset.group_names))
    smallest = int(counts.argmin())
    if (rows := int(counts[smallest])) >= SMALL_GROUP:
        return None
    name = view.dataset.group_names[smallest]
    text = (
        f"The smallest of {len(counts)} groups, {name!r}, has {rows} row{'s' * (rows != 1)}: its results are uncertain."
    )
    return Finding("small groups", text, {"groups": len(counts), "smallest": name, "rows": rows}, (), "notice")


# Rows


def _few_rows(view: _View) -> Finding | None:
    rows, columns = view.matrix.shape
    if rows >= 10 * columns:
        return None
    text = f"{rows:,} rows are few for {columns:,} encoded columns."
    return Finding("few rows", text, {"rows": rows, "columns": columns}, ("overfitting",))


def _conflicting_rows(view: _View) -> Finding | None:
    different = _same_features(view).filter(pl.col("targets") > 1)
    if not different.height:
        return None
    rows = int(different["rows"].sum())
    share = rows / len(view.target)
    return Finding(
        "conflicting rows",
        f"{rows:,} rows ({_percent(share)}) have the same features as another row and a different target "
        f"({different.height:,} set{'s' * (different.height > 1)} of them): no model can be right on all.",
        {"rows": rows, "sets": different.height, "share": share},
        ("noisy labels",) if view.dataset.classes and share >= NOTABLE_NOISE else (),
        "notice" if share >= 0.01 else "info",
    )


def _repeated_rows(view: _View) -> Finding | None:
    same = _same_features(view)
    rows = int((same["rows"] - same["targets"]).sum())
    if not rows:
        return None
    share = rows / len(view.target)
    return Finding(
        "repeated rows",
        f"{rows:,} row{'s' * (rows > 1)} ({_percent(share)}) repeat another, target included: where one is trained on "
        "and the other tested, every objective looks better than it is.",
        {"rows": rows, "share": share},
        (),
        "notice" if share >= 0.01 else "info",
    )


def _same_features(view: _View) -> pl.DataFrame:
    """One row for each set of rows with equal features: the number of rows and of different targets among them."""
    features = view.dataset.features
    hashes = features.hash_rows() if isinstance(features, pl.DataFrame) else _hash(features)
    sets = pl.DataFrame({"hash": hashes, "target": view.target}).group_by("hash")
    return sets.agg(rows=pl.len(), targets=pl.col("target").n_unique()).filter(pl.col("rows") > 1)


def _hash(x: np.ndarray) -> np.ndarray:
    """One 64-bit number for each row, the same for equal rows."""
    flat = x.reshape(len(x), -1)
    factors = np.random.default_rng(0).integers(2**63, size=flat.shape[1], dtype=np.uint64) | np.uint64(1)
    step = max(1, 4_000_000 // flat.shape[1])
    hashes = []
    for start in range(0, len(flat), step):
        words = (flat[start : start + step] + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0 turns -0 into 0
        mixed = (words + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        hashes.append((mixed ^ (mixed >> np.uint64(29))) @ factors)
    return np.concatenate(hashes)


# Columns


def _missing(view: _View) -> Finding | None:
    shares = {column.name: column.null_count() / len(column) for column in view.table if column.null_count()}
    if not shares:
        return None
    overall = sum(shares.values()) / view.table.width
    worst = max(shares, key=shares.__getitem__)
    return Finding(
        "missing values",
        f"{_percent(overall)} of all values are missing, in {len(shares)} of {view.table.width} columns; "
        f"most in {worst!r} ({_percent(shares[worst])}).",
        {"share": overall, "columns": shares},
    )


def _is_constant(column: pl.Series) -> bool:
    return not column.null_count() and bool((column == column[0]).all())


def _constant(view: _View) -> Finding | None:
    names = [column.name for column in view.table if _is_constant(column)]
    if not names:
        return None
    verb = "never vary and say" if len(names) > 1 else "never varies and says"
    return Finding("constant columns", f"{_columns(names)} {verb} nothing.", {"columns": names})


def _duplicate_columns(view: _View) -> Finding | None:
    first: dict[Any, pl.Series] = {}
    twins: dict[str, str] = {}
    for column in view.table:
        if _is_constant(column):
            continue
        key = (column.dtype.is_numeric(), tuple(column.head(1000).to_list()))
        earlier = first.setdefault(key, column)
        if earlier is not column and bool(column.eq_missing(earlier).all()):
            twins[column.name] = earlier.name
    if not twins:
        return None
    shown = ", ".join(f"{name!r} equals {twin!r}" for name, twin in list(twins.items())[:5])
    more = f" and {len(twins) - 5} more" if len(twins) > 5 else ""
    return Finding("duplicate columns", f"Columns repeat others: {shown}{more}.", {"columns": twins})


def _nearly_unique(view: _View) -> Finding | None:
    shares = {}
    for column in view.table:
        present = column.drop_nulls()
        if len(present) >= 50 and (column.dtype.is_integer() or column.dtype == pl.String):
            share = present.n_unique() / len(present)
            if share >= NEARLY_UNIQUE:
                shares[column.name] = share
    if not shares:
        return None
    names = list(shares)
    verb = "have" if len(names) > 1 else "has"
    return Finding(
        "near-unique columns",
        f"{_columns(names)} {verb} a different value in nearly every row: if it only names the row, "
        "leave it out (--drop).",
        {"columns": shares},
        (),
        "notice",
    )


def _leaks(view: _View) -> Finding | None:
    """Find columns that alone predict the target, by trees that are tested on rows outside their training."""
    rows = view.sample(min(LEAK_ROWS, max(500, LEAK_CELLS // max(view.table.width, 1))))
    target = view.target[rows]
    if not view.dataset.classes:
        target = rankdata(target) / len(target)
    scores = {}
    for column in view.table:
        score = _alone(_ordered(column[rows]), target, len(view.dataset.classes))
        if score >= LEAKS:
            scores[column.name] = score
    if not scores:
        return None
    best = max(scores, key=scores.__getitem__)
    measure = "balanced accuracy" if view.dataset.classes else "R² of the ranks"
    verb = "tell" if len(scores) > 1 else "tells"
    return Finding(
        "leaking columns",
        f"{_columns(list(scores))} alone {verb} the target almost exactly ({best!r}: {measure} {scores[best]:.3f} on "
        "unseen rows): what would not be known when predicting must be left out (--drop).",
        {"columns": scores, "measure": measure},
        (),
        "warning",
    )


def _ordered(column: pl.Series) -> np.ndarray:
    """The column as numbers, with texts as their ranks and missing values below all other values."""
    numbers = column if column.dtype.is_numeric() or column.dtype == pl.Boolean else column.rank("dense")
    values = numbers.cast(pl.Float64)
    low = values.min()
    return values.fill_null((float(low) if isinstance(low, float) else 0.0) - 1).to_numpy()


def _alone(values: np.ndarray, target: np.ndarray, classes: int) -> float:
    """The balanced accuracy (or R²) of a tree on one column; each half of the rows is tested by the other's tree."""
    half = np.empty(len(target), dtype=bool)
    half[np.argsort(target, kind="stable")] = np.arange(len(target)) % 2 == 0
    column = values[:, None]
    predicted = np.empty_like(target)
    for test in (half, ~half):
        leaves = max(64, 4 * classes)
        if classes:
            tree = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0)
        else:
            tree = DecisionTreeRegressor(max_leaf_nodes=leaves, random_state=0)
        predicted[test] = tree.fit(column[~test], target[~test]).predict(column[test])
    if not classes:
        return float(r2_score(target, predicted))
    counts = np.bincount(target, minlength=classes)
    right = np.bincount(target[predicted == target], minlength=classes)
    return float((right[counts > 0] / counts[counts > 0]).mean())


CHECKS = (
    _imbalance,
    _many_classes,
    _label_noise,
    _outliers,
    _tails,
    _small_groups,
    _leaks,
    _conflicting_rows,
    _repeated_rows,
    _nearly_unique,
    _few_rows,
    _missing,
    _constant,
    _duplicate_columns,
)
