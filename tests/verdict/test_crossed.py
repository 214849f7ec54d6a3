"""Crossed rows and fitted models: the variance against its definition, plain loops and known variances."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lossworks.verdict import crossed


def design(rows: int, folds: int, repeats: int, seed: int = 0) -> np.ndarray:
    """Random folds of even size."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(np.arange(rows) % folds) for _ in range(repeats)], axis=1)


def draw(fold: np.ndarray, seed: int, row: float = 1.0, fit: float = 0.5, rest: float = 2.0) -> np.ndarray:
    """Differences with parts of these standard deviations of the row, the fitted model and the rest."""
    rng = np.random.default_rng(seed)
    fits = fit * rng.standard_normal((fold.max() + 1, fold.shape[1]))
    own = fits[fold, np.arange(fold.shape[1])]
    return row * rng.standard_normal((len(fold), 1)) + own + rest * rng.standard_normal(fold.shape)


def by_loops(differences: np.ndarray, fold: np.ndarray) -> tuple[float, float, float]:
    """The rows' part, the variance of fits and the degrees of freedom, in plain loops."""
    n, repeats = differences.shape
    folds = int(fold.max()) + 1
    row = [sum(values) / repeats for values in differences.tolist()]
    rest = differences - np.array(row)[:, None]
    squares, one_over, held, cells = 0.0, 0.0, 0.0, folds * repeats
    for r in range(repeats):
        for k in range(folds):
            members = [i for i in range(n) if fold[i, r] == k]
            squares += (sum(rest[i, r] for i in members) / len(members)) ** 2 / cells
            one_over += 1 / len(members) / cells
            held += (1 - 1 / repeats) ** 2 / cells
            for other in range(repeats):
                for j in range(folds):
                    both = sum(fold[i, other] == j for i in members) if other != r else 0
                    held += (both / len(members) / repeats) ** 2 / cells
    held -= (1 - 1 / repeats) * one_over
    raw = squares / held
    per_fit = max(0.0, raw - float((rest**2).mean()) * one_over / held)
    rows = folds / (folds - 1) * float(np.var(row, ddof=1)) / n
    told = raw / cells if per_fit else 0.0
    whole = rows + per_fit / cells
    return rows, per_fit, whole**2 / (rows**2 / (n - 1) + told**2 / ((repeats - 1) * (folds - 1)))


@pytest.mark.parametrize("shape", [(40, 5, 3), (23, 2, 2), (31, 4, 7)])
def test_equals_its_definition_in_plain_loops(shape):
    fold = design(*shape)
    differences = draw(fold, 1)
    found = crossed(differences, fold)
    rows, per_fit, degrees = by_loops(differences, fold)
    assert_allclose(found.mean[0], differences.mean())
    assert_allclose(found.rows[0, 0], rows)
    assert_allclose(found.per_fit[0], per_fit)
    assert_allclose(found.models[0, 0], per_fit / (shape[1] * shape[2]))
    assert_allclose(found.degrees[0], degrees)


def test_what_the_models_variance_adds_is_the_closed_form_of_even_random_folds():
    n, folds, repeats = 4000, 5, 6
    fold = design(n, folds, repeats)
    fits = np.random.default_rng(2).standard_normal((folds, repeats))
    # With no row and no rest, the numerator over A is the fits' variance; so A is the numerator over that variance.
    differences = fits[fold, np.arange(repeats)]
    rest = differences - differences.mean(axis=1, keepdims=True)
    means = [[rest[fold[:, r] == k, r].mean() for k in range(folds)] for r in range(repeats)]
    numerator = np.square(means).mean() - (rest**2).mean() * folds / n
    closed = (1 - 1 / repeats) * (1 - folds / n) * (1 - (folds - 1) / folds / repeats)
    found = crossed(differences, fold)
    assert_allclose(numerator / found.per_fit[0], closed, rtol=1e-3)


def test_finds_the_variances_that_the_differences_were_drawn_with():
    sets, n, folds, repeats = 200, 120, 5, 4
    found = [crossed(draw(design(n, folds, repeats, s), s), design(n, folds, repeats, s)) for s in range(sets)]
    for name, truth in (("per_row", 1.0), ("per_fit", 0.25), ("per_score", 4.0)):
        values = np.array([getattr(one, name)[0] for one in found])
        assert abs(values.mean() - truth) < 4 * values.std() / sets**0.5, name
    # The rows' part is raised for the training rows that real folds share; these have none.
    spread = np.var([one.mean[0] for one in found])
    said = np.mean([one.rows[0, 0] * (folds - 1) / folds + one.models[0, 0] for one in found])
    assert 0.8 < spread / said < 1.25


def test_one_repeat_reads_the_models_from_the_folds_means():
    sets, n, folds = 400, 100, 5
    values = []
    for seed in range(sets):
        fold = design(n, folds, 1, seed)
        values.append(crossed(draw(fold, seed, rest=0.0, fit=1.0), fold).per_fit[0])
    assert abs(np.mean(values) - 1.0) < 4 * np.std(values) / sets**0.5


def test_blocks_of_rows_give_the_same_as_all_at_once(monkeypatch):
    fold, strata, groups = design(57, 3, 4), np.arange(57) % 3, np.arange(57) // 2
    differences = np.stack([draw(fold, 3), draw(fold, 4) + 1e6])

    class Lazy:
        shape = differences.shape

        def __getitem__(self, where):
            assert where[1].stop - where[1].start <= 10
            return differences[where]

    for further in ({}, {"stratum": strata}, {"group": groups}, {"stratum": strata, "group": groups}):
        whole = crossed(differences, fold, **further)
        monkeypatch.setattr(sys.modules[crossed.__module__], "BLOCK", 10)
        parts = crossed(Lazy(), fold, **further)
        monkeypatch.undo()
        for name in ("mean", "rows", "models", "degrees", "per_row", "per_score"):
            assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-7, err_msg=name)


def test_strata_take_the_variance_within_and_satterthwaites_degrees():
    fold, strata = design(60, 5, 2), np.repeat([4, 9], [12, 48])
    differences = draw(fold, 5) + 10 * strata[:, None]
    found = crossed(differences, fold, stratum=strata)
    row = differences.mean(axis=1)
    parts = [(strata == s).mean() ** 2 * np.var(row[strata == s], ddof=1) / (strata == s).sum() for s in (4, 9)]
    assert_allclose(found.rows[0, 0], 5 / 4 * sum(parts))
    alone = crossed(np.repeat(row[:, None], 2, axis=1), fold, stratum=strata)  # no part of the models
    assert_allclose(alone.degrees[0], sum(parts) ** 2 / (parts[0] ** 2 / 11 + parts[1] ** 2 / 47))


def test_a_stratum_of_one_row_takes_the_variance_of_all_rows():
    fold, strata = design(20, 2, 2), np.arange(20) == 7
    differences = draw(fold, 6)
    row = differences.mean(axis=1)
    rest = np.delete(row, 7)
    wanted = (19 / 20) ** 2 * np.var(rest, ddof=1) / 19 + np.var(row, ddof=1) / 20**2
    assert_allclose(crossed(differences, fold, stratum=strata.astype(int)).rows[0, 0], 2 * wanted)


def test_rows_that_come_twice_tell_no_more_if_they_are_one_group():
    fold = design(30, 5, 3)
    differences = draw(fold, 7)
    once = crossed(differences, fold)
    twice = crossed(np.repeat(differences, 2, axis=0), np.repeat(fold, 2, axis=0), group=np.repeat(np.arange(30), 2))
    assert twice.units == 30
    assert_allclose(twice.rows, once.rows)
    doubled = crossed(np.repeat(differences, 2, axis=0), np.repeat(fold, 2, axis=0))
    assert doubled.rows[0, 0] < 0.6 * once.rows[0, 0]
    each = crossed(differences, fold, group=np.arange(30))
    assert_allclose(each.rows, once.rows)
    assert_allclose(each.per_row, once.per_row)


def test_order_sign_and_unit_change_nothing_else():
    fold = design(25, 5, 2)
    differences = draw(fold, 8)
    found, order = crossed(differences, fold), np.random.default_rng(0).permutation(25)
    for other in (crossed(differences[order], fold[order]), crossed(-3 * differences, fold)):
        assert_allclose(other.p(), found.p())
        assert_allclose(other.degrees, found.degrees)


def test_arms_share_what_they_share():
    fold = design(40, 5, 3)
    one, other = draw(fold, 9), draw(fold, 10)
    found = crossed(np.stack([one, -one, one + other, one]), fold)
    assert_allclose(found.correlation[0], [1, -1, found.correlation[0, 2], 1])
    assert 0.4 < found.correlation[0, 2] < 0.95
    assert_allclose(found.mean[2], (one + other).mean())
    for arm, alone in enumerate((one, -one, one + other)):
        assert_allclose(found.variance[arm], crossed(alone, fold).variance[0])


def test_p_values_and_intervals_are_students():
    from scipy import stats

    fold = design(50, 5, 4)
    found = crossed(draw(fold, 11) + 0.3, fold, grain=0.01)
    mean, scale, law = found.mean[0], found.variance[0] ** 0.5, stats.t(found.degrees[0])
    assert_allclose(found.p()[0], 2 * law.sf(abs(mean) / scale))
    assert_allclose(found.interval(0.9), [[mean + law.ppf(0.05) * scale], [mean + law.ppf(0.95) * scale]])
    assert_allclose(found.p_not_worse(0.1)[0], law.sf((mean + 0.1) / scale))
    grained = (found.variance[0] + 0.01) ** 0.5
    assert_allclose(found.p_equal(2.0)[0], law.sf((2.0 - abs(mean)) / grained))
    assert found.p_equal(0.0)[0] >= 0.5
    assert_allclose(found.variance_elsewhere - found.variance, found.per_fit / 4)


def test_differences_without_variance_are_certain():
    fold = design(12, 3, 2)
    found = crossed(np.stack([np.zeros(fold.shape), np.ones(fold.shape)]), fold)
    assert_allclose(found.p(), [1.0, 2.0**-11])
    assert_allclose(found.variance, [0.0, 0.0])
    assert_allclose(found.p_equal(0.5), [2.0**-11, 1.0])
    grained = crossed(np.zeros(fold.shape), fold, grain=1 / 144)
    assert grained.p_equal(0.01)[0] > 0.4  # twelve rows without a difference do not show that there is none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, f: (d[:-1], f), "differences must have shape .* got"),
        (lambda d, f: (d * np.where(np.arange(len(d))[:, None] == 3, np.nan, 1.0), f), "got nan in row 3, repeat 0"),
        (lambda d, f: (d, np.zeros_like(f)), "repeat 0 has one fold"),
        (lambda d, f: (d, np.where(f == 0, 1, f)), "repeat 0 has no row in fold 0"),
        (lambda d, f: (d, f - 1), "fold must be >= 0"),
        (lambda d, f: (d, f + 0.5), "fold must be whole numbers"),
    ],
)
def test_says_what_is_wrong(change, message):
    fold = design(12, 3, 2)
    with pytest.raises(ValueError, match=message):
        crossed(*change(draw(fold, 0), fold))


def test_says_what_is_wrong_with_strata_groups_and_grain():
    fold = design(12, 3, 2)
    differences = draw(fold, 0)
    with pytest.raises(ValueError, match="stratum must be whole numbers >= 0, one for each of 12 rows"):
        crossed(differences, fold, stratum=np.zeros(11, dtype=int))
    with pytest.raises(ValueError, match="group must be >= 2"):
        crossed(differences, fold, group=np.zeros(12, dtype=int))
    with pytest.raises(ValueError, match="grain"):
        crossed(differences, fold, grain=-1.0)
    with pytest.raises(ValueError, match="margin"):
        crossed(differences, fold).p_not_worse(-0.1)
    with pytest.raises(ValueError, match="rope"):
        crossed(differences, fold).p_equal(-0.1)
