"""The mean of paired differences over crossed rows and fitted models, with its variance: what every row tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lossworks.checks import check_between, check_int, check_positive, shown
from lossworks.metrics.arrays import Floats
from lossworks.roles import cite

__all__ = ["Crossed", "Scores", "crossed"]

BLOCK = 1 << 16
"""How many rows are read at once."""
Ints = npt.NDArray[np.integer[Any]]


class Scores(Protocol):
    """One number an arm, row and repeat: an array ``(arms, rows, repeats)``, or what gives one block of rows at a time.

    A memory-mapped array is such a thing.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of arms, rows and repeats."""

    def __getitem__(self, where: tuple[slice, slice], /) -> Any:
        """The block of these arms and rows."""


@dataclass(frozen=True)
class Crossed:
    r"""What :func:`crossed` found of some arms' differences to a reference.

    Attributes:
        mean: The mean difference of each arm, ``(arms,)``.
        rows: The part of the means' covariance that the test rows cause, ``(arms, arms)``.
        models: The part that the fitted models cause, ``(arms, arms)``.
        degrees: The degrees of freedom of each arm's variance, ``(arms,)``.
        per_row: The variance over units of a difference that is averaged over infinitely many repeats, ``(arms,)``.
        per_fit: The variance over fitted models of a fold's mean difference, ``(arms,)``.
        per_score: The variance of a unit's difference in one repeat that neither the unit nor the fitted model
            explains, ``(arms,)``.
        units: The number of independent units: rows, or groups of rows.
        folds: The number of folds.
        repeats: The number of repeats.
        grain: What is added to the variance for an equivalence, because the score moves in steps.
    """

    mean: Floats
    rows: Floats
    models: Floats
    degrees: Floats
    per_row: Floats
    per_fit: Floats
    per_score: Floats
    units: int
    folds: int
    repeats: int
    grain: float

    @property
    def variance(self) -> Floats:
        """The variance of each mean, ``(arms,)``, for models that are trained on this data."""
        return np.asarray(self.rows.diagonal() + self.models.diagonal())

    @property
    def variance_elsewhere(self) -> Floats:
        r"""The variance for models that are trained on *other* samples of this size, ``(arms,)``.

        The share of the fitted models rises from :math:`1 / RK` to :math:`1 / RK + 1 / (K - 1)`.
        """
        return np.asarray(self.variance + self.per_fit / (self.folds - 1))

    @property
    def correlation(self) -> Floats:
        """The correlation of the means, ``(arms, arms)``; an arm without variance has none with others."""
        whole = self.rows + self.models
        scale = np.sqrt(whole.diagonal())
        scale = np.where(scale > 0, scale, np.inf)
        found = np.clip(whole / np.outer(scale, scale), -1, 1)
        np.fill_diagonal(found, 1.0)
        return np.asarray(found)

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """The lower and the upper end of each mean's interval at this level, ``(arms,)`` each."""
        check_between("level", level, 0, 1, open_low=True, open_high=True)
        half = self._quantile((1 + level) / 2) * np.sqrt(self.variance)
        return self.mean - half, self.mean + half

    def p(self) -> Floats:
        """The two-sided p-value of each mean against 0, ``(arms,)``.

        Without variance it is 1 for a mean of 0, and :math:`2^{1 - n}` for another one, as in the test of signs.
        """
        return self._tail(-np.abs(self.mean), 2.0)

    def p_not_worse(self, margin: float) -> Floats:
        """The one-sided p-value of each mean against ``-margin``: small if the arm is worse by less than that."""
        check_positive("margin", margin, allow_zero=True)
        return self._tail(-(self.mean + margin), 1.0)

    def p_equal(self, rope: float) -> Floats:
        r"""The p-value of two one-sided tests that each mean is outside ``[-rope, rope]``, ``(arms,)``.

        The variance is raised by ``grain``: where few rows decide differently, the rows' own variance is 0 too often.
        """
        check_positive("rope", rope, allow_zero=True)
        return self._tail(np.abs(self.mean) - rope, 1.0, self.grain)

    def _tail(self, distance: Floats, sides: float, grain: float = 0.0) -> Floats:
        """The probability under Student's t of ``distance`` or less, on this many sides."""
        from scipy.special import stdtr  # slow to import, and used here alone

        scale = np.sqrt(self.variance + grain)
        certain = np.where(distance < 0, 2.0 ** (1 - min(self.units, 1023)), 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.minimum(1.0, sides * stdtr(self.degrees, distance / scale))
        return np.asarray(np.where(scale > 0, found, certain))

    def _quantile(self, level: float) -> Floats:
        from scipy.special import stdtrit

        return np.asarray(stdtrit(self.degrees, level))


@cite("nadeau2003inference", helps=("ranking systems",))
def crossed(
    differences: Scores | npt.ArrayLike,
    fold: Ints,
    *,
    stratum: Ints | None = None,
    group: Ints | None = None,
    grain: float = 0.0,
) -> Crossed:
    r"""The mean of paired differences of a repeated cross-validation, by crossed rows and fitted models.

    In each of :math:`R` repeats, every one of :math:`n` rows is scored by the model of one of :math:`K` folds that did
    not train on it. So a difference has a part of its row, a part of its fitted model, and a rest:
    :math:`\psi_{ir} = \theta + a_i + f_{k(i, r), r} + \varepsilon_{ir}`. With :math:`\bar\psi_i` the mean over repeats,
    :math:`e_{ir} = \psi_{ir} - \bar\psi_i` and :math:`m_{kr}` the mean of :math:`e` over a fold,

    .. math::
        V = \frac{K}{K - 1} V_\text{row} + \frac{F}{RK}, \qquad V_\text{row} = \frac{\operatorname{var}(\bar\psi)}{n},
        \qquad F = \frac{\overline{m^2} - \overline{e^2}\, \overline{1 / n_{kr}}}{A}

    where :math:`A` is what a unit of the models' variance adds to the numerator, computed from how the folds overlap
    (with even random folds it is :math:`(1 - \frac1R)(1 - \frac Kn)(1 - \frac{K - 1}{RK})` but for terms of
    :math:`1 / n^2`). The factor :math:`K / (K - 1)` is for the training rows that the folds share. The degrees of
    freedom are Satterthwaite's. It speaks of *models trained on this data*.

    With a single repeat the models' part comes from the means of the folds, beyond what their rows explain.

    Args:
        differences: The arm's score minus the reference's, oriented so that larger is better, ``(rows, repeats)`` for
            one arm or ``(arms, rows, repeats)``; blocks of rows are read one after the other.
        fold: The fold that tests each row in each repeat, ``(rows, repeats)``, from 0.
        stratum: A number >= 0 for each row, ``(rows,)``: the rows' variance is then taken within strata, as for a
            metric that averages over classes. A stratum of one row takes the variance of all rows.
        group: A number >= 0 for each row, ``(rows,)``: rows of one group count as one independent unit.
        grain: The variance that an equivalence adds, because the score moves in steps: :math:`1 / n^2` for accuracy.

    Returns:
        A :class:`Crossed`.

    Raises:
        TypeError: differences that are not real numbers.
        ValueError: wrong shapes, differences that are not finite (the message names the first), fewer than two folds in
            a repeat, fewer than two rows or groups.

    Use it when each row has a score of its own, or an influence on the metric. For a few scores of folds alone there is
    :func:`paired_test`.

    Papers: nadeau2003inference

    >>> differences = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> crossed(differences, np.array([[0, 1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 0]])).mean.round(3)
    array([0.583])
    """
    scores: Any = differences if hasattr(differences, "shape") else np.asarray(differences)
    if len(scores.shape) == 2:
        scores = np.asarray(scores)[None]
    fold = np.asarray(fold)
    if len(scores.shape) != 3 or tuple(scores.shape[1:]) != fold.shape or not scores.shape[0]:
        raise ValueError(
            f"differences must have shape (rows, repeats) or (arms, rows, repeats) with the rows and repeats of fold "
            f"{fold.shape}, got {tuple(scores.shape)}"
        )
    arms, rows, repeats = scores.shape
    check_int("rows", rows, low=2)
    check_positive("grain", grain, allow_zero=True)
    folds = _folds(fold)
    strata, layers = _numbered("stratum", stratum, rows)
    groups, units = (None, rows) if group is None else _numbered("group", group, rows)
    check_int("group" if group is not None else "rows", units, low=2)
    sums = _Sums(arms, folds, repeats, layers, units if groups is not None else 0)
    for where in _blocks(rows):
        block = np.asarray(scores[:, where])
        if block.dtype.kind not in "biuf":
            raise TypeError(f"differences must be an array of real numbers, got {block.dtype}")
        block = block.astype(np.float64)
        _check_finite(block, where.start)
        sums.add(block, fold[where], strata[where], None if groups is None else groups[where])
    return sums.finish(units, grain)


class _Sums:
    """What one pass over the rows keeps."""

    def __init__(self, arms: int, folds: int, repeats: int, layers: int, groups: int) -> None:
        self.folds, self.repeats = folds, repeats
        cells = folds * repeats
        self.count = np.zeros(layers)
        self.mean = np.zeros((layers, arms))
        self.moment = np.zeros((layers, arms, arms))
        self.spread = np.zeros((arms, arms))
        self.cell = np.zeros((arms, cells))
        self.overlap = np.zeros((cells, cells))
        self.of_group = np.zeros((groups, layers, arms))
        self.in_group = np.zeros((groups, layers))

    def add(self, block: Floats, fold: Ints, stratum: Ints, group: Ints | None) -> None:
        arms, rows, repeats = block.shape
        row = block.mean(axis=2)
        rest = block - row[:, :, None]
        flat = rest.reshape(arms, -1)
        self.spread += flat @ flat.T
        member = np.zeros((rows, self.folds * repeats), dtype=np.float32)
        cell = fold * repeats + np.arange(repeats)
        member[np.arange(rows)[:, None], cell] = 1
        self.overlap += member.T @ member
        for arm in range(arms):
            # One repeat leaves no rest, and the means of the folds tell of the models.
            told = rest[arm] if repeats > 1 else block[arm]
            self.cell[arm] += np.bincount(cell.ravel(), weights=told.ravel(), minlength=self.cell.shape[1])
        for layer in np.unique(stratum).tolist():
            own = row[:, stratum == layer]
            count, mean = own.shape[1], own.mean(axis=1)
            apart, total = mean - self.mean[layer], self.count[layer] + count
            centred = own - mean[:, None]
            self.moment[layer] += centred @ centred.T + np.outer(apart, apart) * (self.count[layer] * count / total)
            self.mean[layer] += apart * (count / total)
            self.count[layer] = total
        if group is not None:
            np.add.at(self.of_group, (group, stratum), row.T)
            np.add.at(self.in_group, (group, stratum), 1)

    def finish(self, units: int, grain: float) -> Crossed:
        folds, repeats, n = self.folds, self.repeats, float(self.count.sum())
        share = self.count / n
        mean = share @ self.mean
        rows, degrees = self._rows(units, mean)
        size = self.overlap.diagonal()
        noise = float((1 / size).mean())
        if repeats > 1:
            each = self.cell / size
            raw = each @ each.T / len(size)
            spread = self.spread / (n * repeats)
            shares = self.overlap / size[:, None]
            np.fill_diagonal(shares, 0)
            held = (1 - 1 / repeats) ** 2 + float((shares**2).sum()) / len(size) / repeats**2
            held -= (1 - 1 / repeats) * noise
            raw, per_fit = (raw / held, (raw - spread * noise) / held) if held > 1e-9 else (raw * 0, raw * 0)
            of_models, rest = (repeats - 1) * (folds - 1), spread.diagonal() * repeats / (repeats - 1)
        else:
            each = self.cell / size - (self.cell.sum(axis=1) / n)[:, None]
            raw = each @ each.T / (folds - 1)
            per_fit = raw - self.moment.sum(axis=0) / max(n - len(self.count), 1) * noise
            of_models, rest = folds - 1, np.zeros(len(mean))
        per_fit = _at_least_zero(per_fit)
        fits = folds * repeats
        models, rows = per_fit / fits, rows * folds / (folds - 1)
        whole = rows.diagonal() + models.diagonal()
        found = per_fit.diagonal().copy()
        told = np.where(found > 0, raw.diagonal() / fits, 0.0)
        # Of a group's mean, so that it shrinks with the number of rows in a group.
        per_score = np.maximum(0.0, rest - found) * (units / n)
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = whole**2 / (rows.diagonal() ** 2 / degrees + told**2 / of_models)
        return Crossed(
            mean=mean,
            rows=rows,
            models=models,
            degrees=np.where(whole > 0, freedom, units - 1.0),
            per_row=np.maximum(0.0, units * rows.diagonal() * (folds - 1) / folds - per_score / repeats),
            per_fit=found,
            per_score=per_score,
            units=units,
            folds=folds,
            repeats=repeats,
            grain=grain,
        )

    def _rows(self, units: int, mean: Floats) -> tuple[Floats, Floats]:
        """The covariance of the means that the rows cause, and its degrees of freedom."""
        n = self.count.sum()
        if len(self.of_group):
            apart = (self.of_group - self.in_group[:, :, None] * self.mean).sum(axis=1)
            return apart.T @ apart * (units / (units - 1)) / n**2, np.full(len(mean), units - 1.0)
        between = self.mean - mean
        pooled = (self.moment.sum(axis=0) + (between.T * self.count) @ between) / (n - 1)
        parts, freedom = np.zeros_like(self.moment), np.maximum(self.count - 1, 1)
        for layer, count in enumerate(self.count):
            parts[layer] = (count / n**2) * (self.moment[layer] / (count - 1) if count > 1 else pooled)
        whole = parts.sum(axis=0)
        each = parts.diagonal(axis1=1, axis2=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            degrees = whole.diagonal() ** 2 / (each**2 / freedom[:, None]).sum(axis=0)
        return whole, np.where(whole.diagonal() > 0, degrees, n - 1)


def _at_least_zero(covariance: Floats) -> Floats:
    """The nearest covariance with the same diagonal where that is positive, and 0 where it is not."""
    found = np.maximum(covariance.diagonal(), 0.0)
    scale = np.sqrt(found)
    outer = np.outer(scale, scale)
    correlation = np.divide(covariance, outer, out=np.zeros_like(covariance), where=outer > 0)
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    correlation = (vectors * np.maximum(values, 0.0)) @ vectors.T
    size = np.sqrt(correlation.diagonal())
    both = np.outer(size, size)
    correlation = np.divide(correlation, both, out=np.zeros_like(both), where=both > 0)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(outer * correlation)


def _folds(fold: Ints) -> int:
    if fold.dtype.kind not in "iu" or fold.ndim != 2 or not fold.size:
        raise ValueError(f"fold must be whole numbers of shape (rows, repeats), got {fold.dtype} {fold.shape}")
    if fold.min() < 0:
        raise ValueError(f"fold must be >= 0, got {int(fold.min())}")
    folds = int(fold.max()) + 1
    for repeat, column in enumerate(fold.T):
        empty = np.flatnonzero(np.bincount(column, minlength=folds) == 0)
        if folds < 2 or len(empty):
            raise ValueError(
                f"fold must have at least two folds, each with rows in every repeat; repeat {repeat} has "
                + (f"no row in fold {empty[0]}" if len(empty) else "one fold")
            )
    return folds


def _numbered(name: str, numbers: Ints | None, rows: int) -> tuple[Ints, int]:
    """The numbers of the rows without gaps, and how many there are."""
    if numbers is None:
        return np.zeros(rows, dtype=np.int64), 1
    numbers = np.asarray(numbers)
    if numbers.shape != (rows,) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(f"{name} must be whole numbers >= 0, one for each of {rows} rows, got {shown(numbers)}")
    found, inverse = np.unique(numbers, return_inverse=True)
    return inverse, len(found)


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, BLOCK):
        yield slice(start, min(rows, start + BLOCK))


def _check_finite(block: Floats, start: int) -> None:
    if not np.isfinite(block).all():
        arm, row, repeat = np.argwhere(~np.isfinite(block))[0].tolist()
        count = int((~np.isfinite(block)).any(axis=(0, 2)).sum())
        raise ValueError(
            f"differences must be finite, got {block[arm, row, repeat]} in row {start + row}, repeat {repeat}, arm "
            f"{arm}, and a number that is not finite in {count} row{'s' if count > 1 else ''} of that block"
        )
