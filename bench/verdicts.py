"""Measure verdicts by simulation: how often "better" is false, and how often a true difference is found.

Each simulated set is a table, on which a reference and some candidates are trained by a repeated cross-validation. The
truth of a setting is the mean, over its sets, of the fitted models' scores on a large pool of new rows. The old
procedure (a corrected t-test on folds with Holm's adjustment) and the new one (crossed rows and fitted models, with a
step-down by the maximum) judge the same scores.

    python bench/verdicts.py [--sets 300] [--json] [--only stable]
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sklearn.datasets import make_classification
from sklearn.model_selection import StratifiedKFold

from lossworks.verdict import crossed, holm, paired_test, step_down

POOL = 4000
ROPE = 0.01
ALPHA = 0.05


@dataclass(frozen=True)
class Drawn:
    """A table with a pool of new rows, and what every learner reads of it."""

    y: np.ndarray
    x: list[np.ndarray]
    pool_y: np.ndarray
    pool_x: list[np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A generator at one size and difference."""

    generator: str
    rows: int
    effect: float
    candidates: int = 1
    folds: int = 5
    repeats: int = 10
    wanted: float | None = None


@dataclass
class Found:
    """What the sets of one setting gave."""

    truth: list[float] = field(default_factory=list)
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


def stable(setting: Setting, rng: np.random.Generator) -> Drawn:
    """Two balanced classes, 10 % flipped; four shared columns, and four of each learner's own."""
    shares = [setting.effect, *[1.0] * setting.candidates]
    return _columns(setting.rows, shares, positives=0.5, flipped=0.1, distance=1.5, rng=rng)


def weights(setting: Setting, rng: np.random.Generator) -> Drawn:
    """One set of columns for all, 18 % positives, 5 % flipped; the candidates weigh the classes."""
    return _columns(setting.rows, [1.0], positives=0.18, flipped=0.05, distance=2.0, rng=rng)


def imbalanced(setting: Setting, rng: np.random.Generator) -> Drawn:
    """As ``stable``, with 18 % positives: the null of the balanced metric."""
    shares = [setting.effect, *[1.0] * setting.candidates]
    return _columns(setting.rows, shares, positives=0.18, flipped=0.05, distance=2.0, rng=rng)


def unstable(setting: Setting, rng: np.random.Generator) -> Drawn:
    """A table of scikit-learn's for learners that draw their features anew at each fit."""
    x, y = make_classification(
        setting.rows + POOL, 12, n_informative=6, n_redundant=2, class_sep=1.0, flip_y=0.1,
        random_state=int(rng.integers(2**31)),
    )  # fmt: skip
    n = setting.rows
    return Drawn(y[:n], [x[:n]], y[n:], [x[n:]])


def _columns(
    rows: int, shares: list[float], *, positives: float, flipped: float, distance: float, rng: np.random.Generator
) -> Drawn:
    n = rows + POOL
    y = (rng.permutation(n) < positives * n).astype(np.int64)
    half = distance / math.sqrt(2) / 2  # four columns a half: each is apart by distance / sqrt(2) / sqrt(4)
    shared = rng.standard_normal((n, 4)) + half * y[:, None]
    x = [np.concatenate([shared, rng.standard_normal((n, 4)) + share * half * y[:, None]], axis=1) for share in shares]
    y = np.where(rng.random(n) < flipped, 1 - y, y)
    return Drawn(y[:rows], [one[:rows] for one in x], y[rows:], [one[rows:] for one in x])


GENERATORS: dict[str, Callable[[Setting, np.random.Generator], Drawn]] = {
    "stable": stable,
    "weights": weights,
    "imbalanced": imbalanced,
    "unstable": unstable,
}
BALANCED = ("weights", "imbalanced")


def logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """The coefficients of logistic regressions on the same rows with other weights, ``(fits, columns + 1)``."""
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.diag([ridge] * x.shape[1] + [1e-6])
    products = (design[:, :, None] * design[:, None, :]).reshape(len(x), -1)
    beta = np.zeros((len(weight), design.shape[1]))
    for _ in range(8):
        p = 1 / (1 + np.exp(-np.clip(beta @ design.T, -30, 30)))
        slope = (weight * (p - y)) @ design + beta @ penalty
        curvature = ((weight * p * (1 - p)) @ products).reshape(len(weight), *penalty.shape) + penalty
        beta -= np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
    return beta


def fitted(
    setting: Setting, drawn: Drawn, train: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Train all learners: whether each row of the table, and of the pool, is right, ``(learners, fits, rows)`` each."""
    learners = setting.candidates + 1
    if setting.generator == "unstable":
        return _random_features(setting, drawn, train, rng)
    own, new = [], []
    for learner in range(learners):
        x, pool = (one[learner if len(one) > 1 else 0] for one in (drawn.x, drawn.pool_x))
        weight = train.astype(np.float64)
        if setting.generator == "weights" and learner:
            ones = (train * drawn.y).sum(axis=1, keepdims=True)
            weight *= np.where(drawn.y == 1, ((train.sum(axis=1, keepdims=True) - ones) / ones) ** setting.effect, 1.0)
        beta = logistic(x, drawn.y, weight)
        for target, rows, kept in ((drawn.y, x, own), (drawn.pool_y, pool, new)):
            kept.append((beta[:, :-1] @ rows.T + beta[:, -1:] > 0) == target)
    return np.stack(own), np.stack(new)


def _random_features(
    setting: Setting, drawn: Drawn, train: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    x, pool, width = drawn.x[0], drawn.pool_x[0], 24
    own, new = [], []
    for learner in range(setting.candidates + 1):
        for fit in range(len(train)):
            rows = np.flatnonzero(train[fit])
            if not learner:
                rows = rng.permutation(rows)[: round(setting.effect * len(rows))]
            project, shift = rng.standard_normal((x.shape[1], width)), rng.standard_normal(width)
            hidden = [np.maximum(one @ project + shift, 0) for one in (x, pool)]
            design = np.concatenate([hidden[0][rows], np.ones((len(rows), 1))], axis=1)
            beta = np.linalg.solve(design.T @ design + np.eye(width + 1), design.T @ (2 * drawn.y[rows] - 1))
            for target, values, kept in ((drawn.y, hidden[0], own), (drawn.pool_y, hidden[1], new)):
                kept.append((values @ beta[:-1] + beta[-1] > 0) == target)
    shape = (setting.candidates + 1, len(train), -1)
    return np.stack(own).reshape(shape), np.stack(new).reshape(shape)


def splits(y: np.ndarray, folds: int, repeats: int, seed: int) -> np.ndarray:
    """The fold that tests each row in each repeat, ``(rows, repeats)``."""
    fold = np.empty((len(y), repeats), dtype=np.int64)
    for repeat in range(repeats):
        cut = StratifiedKFold(folds, shuffle=True, random_state=seed + repeat)
        for number, (_, test) in enumerate(cut.split(y, y)):
            fold[test, repeat] = number
    return fold


def one_set(setting: Setting, seed: int) -> tuple[list[float], list[str], list[str]]:
    """Judge one simulated set: the candidates' true differences, and their verdicts by the old and new procedure."""
    rng = np.random.default_rng([seed, *setting.generator.encode(), setting.rows, round(1000 * setting.effect)])
    drawn = GENERATORS[setting.generator](setting, rng)
    fold = splits(drawn.y, setting.folds, setting.repeats, seed % 10**6)
    train = np.concatenate([fold[:, r] != k for r in range(setting.repeats) for k in range(setting.folds)])
    train = train.reshape(-1, setting.rows)
    own, new = fitted(setting, drawn, train, rng)
    where = fold + setting.folds * np.arange(setting.repeats)
    right = own[:, where, np.arange(setting.rows)[:, None]].astype(np.float64)
    gain = right[1:] - right[0]
    if setting.generator in BALANCED:
        classes = [drawn.y == c for c in (0, 1)]
        scale = np.where(classes[1], setting.rows / 2 / classes[1].sum(), setting.rows / 2 / classes[0].sum())
        grain = sum(1 / (2 * c.sum()) ** 2 for c in classes)
        truth = np.mean([new[:, :, drawn.pool_y == c].mean(axis=(1, 2)) for c in (0, 1)], axis=0)
        found = crossed(gain * scale[:, None], fold, stratum=drawn.y, grain=grain)
        of_fold = np.mean([_by_fold(gain[:, c], fold[c], setting) for c in classes], axis=0)
    else:
        truth = new.mean(axis=(1, 2))
        found = crossed(gain, fold, grain=1 / setting.rows**2)
        of_fold = _by_fold(gain, fold, setting)
    p = step_down(found.p(), found.correlation)
    equal = found.p_equal(ROPE) <= ALPHA
    means = [paired_test(values, test_fraction=1 / setting.folds, rope=ROPE) for values in of_fold]
    adjusted = holm([one.p for one in means])
    new_verdicts = [_verdict(d, q, e) for d, q, e in zip(found.mean, p, equal, strict=True)]
    old_verdicts = [_verdict(one.mean, q, (one.within or 0) >= 0.95) for one, q in zip(means, adjusted, strict=True)]
    return (truth[1:] - truth[0]).tolist(), old_verdicts, new_verdicts


def _by_fold(gain: np.ndarray, fold: np.ndarray, setting: Setting) -> np.ndarray:
    """The mean difference of every fold, ``(candidates, folds · repeats)``."""
    cell = (fold + setting.folds * np.arange(setting.repeats)).ravel()
    count = setting.folds * setting.repeats
    sizes = np.bincount(cell, minlength=count)
    return np.stack([np.bincount(cell, weights=one.ravel(), minlength=count) / sizes for one in gain])


def _verdict(difference: float, p: float, equal: bool) -> str:
    if equal:
        return "equal"
    if p < ALPHA:
        return "better" if difference > 0 else "worse"
    return "unclear"


def measure(setting: Setting, sets: int, seed: int) -> dict[str, object]:
    """Judge many sets of one setting."""
    found = Found()
    families = {"old": 0, "new": 0}
    for number in range(sets):
        truth, old, new = one_set(setting, seed + 1000 * number)
        found.truth += truth
        found.old += old
        found.new += new
        families["old"] += "better" in old
        families["new"] += "better" in new
    row: dict[str, object] = {
        "generator": setting.generator,
        "shape": f"{setting.rows} x {setting.folds} x {setting.repeats}",
        "effect": setting.effect,
        "candidates": setting.candidates,
        "sets": sets,
        "seed": seed,
        "true_difference": float(np.mean(found.truth)),
        "wanted": setting.wanted,
    }
    for name, verdicts in (("old", found.old), ("new", found.new)):
        shares = {v: sum(one == v for one in verdicts) / len(verdicts) for v in ("better", "worse", "equal")}
        row[name] = shares | {"any_better": families[name] / sets, "of_families": families[name]}
    return row


NULLS = (
    *(Setting("stable", rows, 1.0, candidates) for rows, candidates in ((100, 1), (300, 1), (300, 6), (1000, 1))),
    *(Setting("imbalanced", rows, 1.0, candidates) for rows, candidates in ((150, 1), (300, 1), (300, 6))),
    *(Setting("unstable", rows, 1.0, candidates) for rows, candidates in ((100, 1), (300, 1), (300, 6))),
    Setting("stable", 300, 1.0, 1, repeats=2),
    Setting("unstable", 300, 1.0, 1, repeats=2),
    Setting("unstable", 300, 1.0, 1, repeats=1),
)
POWERS = (
    Setting("stable", 300, 0.32, wanted=0.40),
    Setting("stable", 1000, 0.64, wanted=0.48),
    Setting("weights", 300, 0.2, wanted=0.48),
    Setting("weights", 1000, 0.1, wanted=0.90),
    Setting("unstable", 300, 0.3, wanted=0.95),
)


def upper(count: int, of: int) -> float:
    """The upper end of the 95 % interval of a share (Clopper and Pearson)."""
    from scipy.stats import beta

    return float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=GENERATORS)
    parser.add_argument("--part", choices=("nulls", "powers"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = {"nulls": NULLS, "powers": POWERS}
    rows = []
    for part, each in settings.items():
        for setting in each:
            if options.part in (None, part) and options.only in (None, setting.generator):
                row = measure(setting, options.sets, options.seed) | {"part": part}
                rows.append(row)
                print(json.dumps(row) if options.json else line(row), flush=True)
    nulls = [row for row in rows if row["part"] == "nulls"]
    for name in ("old", "new") if nulls else ():
        count, of = sum(row[name]["of_families"] for row in nulls), sum(row["sets"] for row in nulls)
        worst = max(row[name]["any_better"] for row in nulls)
        found = {"procedure": name, "nulls": of, "better": count, "rate": count / of, "upper": upper(count, of)}
        print(json.dumps(found | {"worst": worst}))


def line(row: dict) -> str:
    """One setting in one line of text."""
    told = (
        f"{name} " + " ".join(f"{v[:6]} {row[name][v]:.3f}" for v in row[name] if v != "of_families")
        for name in ("old", "new")
    )
    return (
        f"{row['generator']:10} {row['shape']:12} {row['candidates']} δ {row['true_difference']:+.4f} | "
        + " | ".join(told)
    )


if __name__ == "__main__":
    main()
