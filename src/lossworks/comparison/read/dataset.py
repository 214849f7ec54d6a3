"""The data set: features, target and task of the user's data, all of them checked."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lossworks.checks import InputError, listed, nearest
from lossworks.comparison.read.columns import MOST_CLASSES_OF_NUMBERS, MOSTLY, as_number, as_text, check_kind, prepare
from lossworks.comparison.read.tables import Arrays, Place, load, series
from lossworks.comparison.tasks.base import Target, Task
from lossworks.comparison.tasks.known import find_task, tasks

__all__ = ["Dataset", "check_folds", "embedded", "read", "read_features"]

EMBEDDED = {"anes96": "party"}


@dataclass(frozen=True)
class Dataset:
    """A data set: the rows to learn from, with their target and task.

    Attributes:
        name: The file's name without its suffix, or ``"data"``.
        features: The columns except the target, the group and the dropped ones; or a float32 array ``(n, d)`` or
            ``(n, c, h, w)``.
        target: The class codes ``(n,)``, int64, or the values ``(n,)``, float64.
        task: The task that the target asks for.
        target_name: The name of the target's column or array.
        classes: The labels as text, in the order of their codes; empty if the target is not a class.
        group: Each row's group as an index into ``group_names``, ``(n,)``, int64; None if no group was named.
        group_names: The names of the groups.
        source: The file, or None if the data did not come from one.
        options: The options of the reading; ``read(source, **options)`` reads the data again.
        notes: Sentences about how the data was understood and changed.
    """

    name: str
    features: pl.DataFrame | np.ndarray
    target: np.ndarray
    task: Task
    target_name: str
    classes: tuple[str, ...]
    group: np.ndarray | None
    group_names: tuple[str, ...]
    source: Path | None
    options: dict[str, Any]
    notes: tuple[str, ...]


def read(
    data: Any,
    *,
    target: str | None = None,
    task: str | None = None,
    group: str | None = None,
    drop: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Read a data set and recognise its task.

    Args:
        data: A path (.csv, .tsv, .txt, .parquet, .arrow, .feather, .ipc, .npz with arrays ``X`` and ``y``), a polars or
            pandas frame, a dict of columns, or a tuple ``(X, y)``.
        target: The column to predict, which must be named for a table. For an NPZ file it is the name of the array, by
            default ``"y"``.
        task: The name of the task, such as ``"binary"``, ``"multiclass"``, ``"real"`` or ``"counts"``. By default the
            task is recognised from the target: texts, booleans and a few different whole numbers are classes.
        group: A column that names each row's group; it is not used as a feature.
        drop: Columns to leave out.
        columns: How to read columns, by name: as ``"category"`` (texts, of which the 100 most common are kept apart),
            ``"number"`` (a text that is not a number becomes missing), or ``"date"`` or ``"date:FORMAT"`` (days since
            the earliest date).

    Raises:
        InputError: the data or an argument has a fault; the message says in one line what, where and what to do.
    """
    if task is not None and task not in tasks():
        raise InputError(f"task must be one of {listed(list(tasks()))}, got {task!r}{nearest(str(task), tasks())}")
    asked = None if task is None else find_task(task)
    names = ["X", target or "y"] + ([group] if group else [])
    raw, place = load(data, exact=target, arrays=names)
    drop, columns = list(drop), dict(columns or {})
    if isinstance(raw, dict):
        if drop or columns:
            raise InputError(
                f"{place.label} holds arrays, whose columns have no names: drop= and columns= are for tables"
            )
        return _of_arrays(raw, place, names, asked)
    if target is None and isinstance(data, tuple):
        target = "y"
    return _of_table(raw, place, target, asked, group, drop, columns)


def read_features(data: Any, options: Mapping[str, Any] | None = None) -> tuple[pl.DataFrame | np.ndarray, Place]:
    """Read the features of new rows, and return them with the place they came from, for ``Encoder.transform``.

    The rows need no target. The columns are read according to ``options``, which are those of a ``Dataset``.
    """
    raw, place = load(data)
    if isinstance(raw, dict):
        return _finite_features(raw["X"], place), place
    return _prepared(raw, place, (options or {}).get("columns", {})), place


def _prepared(table: pl.DataFrame, place: Place, kinds: Mapping[str, str]) -> pl.DataFrame:
    """The table with its columns read as the given kinds."""
    known = [(name, kind) for name, kind in kinds.items() if name in table.columns]
    return table.with_columns(prepare(table[name], place, kind)[0] for name, kind in known)


def read_labelled(
    data: Any, target: str, options: Mapping[str, Any] | None = None
) -> tuple[pl.DataFrame | np.ndarray, list[str], Place]:
    """Read the features as :func:`read_features` does, each row's label as text, and the place they came from."""
    raw, place = load(data, exact=target, arrays=("X", target))
    columns = (options or {}).get("columns", {})
    if isinstance(raw, dict):
        if target not in raw:
            raise InputError(f"{place.label} is X alone, without a target: give a tuple (X, y)")
        features: pl.DataFrame | np.ndarray = _finite_features(raw["X"], place)
        column = _vector(raw[target], target, len(features), place)
    else:
        if target not in raw.columns:
            raise InputError(f"{place.label} has no column {target!r} (the target){nearest(target, raw.columns)}")
        features = _prepared(raw, place, columns)
        column = raw[target]
    labels = as_text(_target_column(column, place, columns.get(target)))
    if bool(labels.is_null().any()):
        row = int(labels.is_null().arg_max() or 0)
        raise InputError(
            f"{place.label}, column {target!r} (the target) has no value in {place.row(row)}: leave it out"
        )
    return features, labels.to_list(), place


def embedded(name: str = "anes96") -> Dataset:
    """Read a data set that comes with the package: ``anes96``, party identification in 7 classes from 9 features."""
    if name not in EMBEDDED:
        raise InputError(
            f"there is no embedded data set {name!r}{nearest(name, EMBEDDED)}; there is {listed(list(EMBEDDED))}"
        )
    with resources.as_file(resources.files("lossworks.comparison.read") / "data" / f"{name}.csv") as path:
        dataset = read(path, target=EMBEDDED[name])
    return replace(dataset, source=None, options={"embedded": name})


def check_folds(dataset: Dataset, folds: int) -> None:
    """Raise unless each stratum has a row for every fold, or, without strata, the table has two rows for every fold."""
    rows, strata = len(dataset.target), dataset.task.strata(dataset.target)
    if strata is None or rows < folds:
        if rows < 2 * folds:
            raise InputError(
                f"{_label(dataset)} has {rows} rows, too few for {folds} folds: use --folds {max(2, rows // 2)}"
            )
        return
    counts = np.bincount(strata, minlength=len(dataset.classes))
    rarest = int(counts.argmin())
    if (few := int(counts[rarest])) < folds:
        way = (
            f"use --folds {few}, or leave the class's rows out" if few >= 2 else "leave its row out, or add rows of it"
        )
        name = dataset.classes[rarest] if dataset.classes else str(rarest)
        raise InputError(
            f"{_label(dataset)}, column {dataset.target_name!r}: class {name!r} has {few} "
            f"row{'s' * (few != 1)}, fewer than the {folds} folds: {way}"
        )


def _label(dataset: Dataset) -> str:
    return str(dataset.source or dataset.name)


# Tables


def _of_table(
    table: pl.DataFrame,
    place: Place,
    target: str | None,
    task: Task | None,
    group: str | None,
    drop: list[str],
    columns: dict[str, str],
) -> Dataset:
    if target is None:
        raise InputError(
            f"{place.label}: say which column to predict, --target NAME; its columns are {listed(table.columns)}"
        )
    for what, name in [
        ("target", target),
        ("group", group),
        *(("drop", n) for n in drop),
        *(("columns", n) for n in columns),
    ]:
        if name is not None and name not in table.columns:
            raise InputError(
                f"{place.label} has no column {name!r} ({what}){nearest(name, table.columns)}; its columns are "
                f"{listed(table.columns)}"
            )
    if group == target:
        raise InputError(f"column {target!r} cannot be both the target and the group")
    if taken := [name for name in drop if name in (target, group)]:
        raise InputError(
            f"column {taken[0]!r} cannot be dropped: it is the {'target' if taken[0] == target else 'group'}"
        )
    kinds = dict(columns)
    for name, kind in columns.items():
        check_kind(name, kind)

    labels = _target_column(table[target], place, kinds.get(target))
    kept = labels.is_not_null()
    gone = len(labels) - int(kept.sum())
    if gone == len(labels):
        raise InputError(f"{place.label}, column {target!r} (the target) has no values: choose another --target")
    target_read, found, notes = _target(labels, place, task)
    groups, group_names = _groups(table[group].filter(kept)) if group else (None, ())

    prepared = []
    for name in table.columns:
        if name in (target, group, *drop):
            continue
        column, kind_read = prepare(table[name], place, columns.get(name))
        if kind_read is not None:
            kinds[name] = kind_read
        column = column.filter(kept) if gone else column
        if column.null_count() == len(column):
            raise InputError(f"{place.label}, column {name!r} has no values: use --drop {shlex.quote(name)}")
        prepared.append(column)
    if not prepared:
        raise InputError(
            f"{place.label} has no columns beside the target and those left out: there is nothing to learn from"
        )

    if gone:
        notes.append(f"{gone:,} row{'s' * (gone > 1)} without a target {'were' if gone > 1 else 'was'} left out")
    return Dataset(
        name=place.path.stem if place.path else "data",
        features=pl.DataFrame(prepared),
        target=target_read.values,
        task=found,
        target_name=target,
        classes=target_read.classes,
        group=groups,
        group_names=group_names,
        source=place.path,
        options={"target": target, "task": found.name, "group": group, "drop": drop, "columns": kinds},
        notes=tuple(notes),
    )


def _target_column(column: pl.Series, place: Place, kind: str | None) -> pl.Series:
    """The target as booleans, numbers or texts, with missing values as null."""
    found = _target_as_found(column, place, kind)
    if found.dtype.is_numeric():
        beyond = found.cast(pl.Float32, strict=False).is_infinite().fill_null(False)
        if bool(beyond.any()):
            row = int(beyond.arg_max() or 0)
            raise InputError(
                f"{place.label}, column {column.name!r} (the target), {place.row(row)} is infinite or beyond float32 "
                f"({found[row]}): correct it, or leave it empty"
            )
    return found


def _target_as_found(column: pl.Series, place: Place, kind: str | None) -> pl.Series:
    where = f"{place.label}, column {column.name!r} (the target)"
    if kind not in (None, "category", "number"):
        raise InputError(
            f"{where} cannot be predicted as dates: use --as {shlex.quote(column.name)}=number or =category"
        )
    if kind is None and column.dtype.is_temporal():
        raise InputError(f"{where} holds dates or times: use --as {shlex.quote(column.name)}=number or =category")
    if kind is None and column.dtype == pl.String:
        text = as_text(column)
        numbers = as_number(text)
        found, known = len(text) - numbers.null_count(), len(text) - text.null_count()
        if known and found == known:
            return numbers
        if found >= MOSTLY * known and text.n_unique() > MOST_CLASSES_OF_NUMBERS:
            row = int((numbers.is_null() & text.is_not_null()).arg_max() or 0)
            name = shlex.quote(column.name)
            raise InputError(
                f"{where} mixes numbers with text: {place.row(row)} has {text[row]!r}; correct it, or use "
                f"--as {name}=number to leave such rows out, or --as {name}=category if the values are classes"
            )
        return text
    if kind == "category" or column.dtype in (pl.String, pl.Categorical, pl.Enum):
        return as_number(as_text(column)) if kind == "number" else as_text(column)
    if column.dtype in (pl.Boolean, pl.Null) or column.dtype.is_integer():
        return column
    if not column.dtype.is_numeric() and not column.dtype.is_temporal():
        raise InputError(f"{where} holds {column.dtype}, which is neither numbers nor text: choose another --target")
    return column.to_physical().cast(pl.Float64).fill_nan(None)


def _target(labels: pl.Series, place: Place, asked: Task | None) -> tuple[Target, Task, list[str]]:
    """The target, its task, and notes on how the target was understood."""
    where = f"{place.label}, column {labels.name!r} (the target)"
    labels = labels.drop_nulls()
    distinct = labels.unique().sort()
    if len(distinct) == 1:
        raise InputError(
            f"{where} has one value, {str(distinct[0])!r}, in all {len(labels)} rows: there is nothing to predict"
        )
    if asked is not None:
        return asked.read(labels, distinct, where), asked, []
    found = next(task for task in tasks().values() if task.recognises(labels, distinct))
    note = found.note(labels, distinct)
    return found.read(labels, distinct, where), found, [] if note is None else [note]


def _groups(column: pl.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    text = as_text(column).fill_null("(missing)")
    names = text.unique().sort()
    codes = text.replace_strict(names, pl.Series(range(len(names)), dtype=pl.Int64), return_dtype=pl.Int64)
    return codes.to_numpy().copy(), tuple(names.to_list())


# Arrays


def _of_arrays(arrays: Arrays, place: Place, names: list[str], task: Task | None) -> Dataset:
    target_name, group_name = names[1], names[2] if len(names) > 2 else None
    if target_name not in arrays:
        raise InputError(f"{place.label} is X alone, without a target: give a tuple (X, y)")
    features = _finite_features(arrays["X"], place)
    if group_name and group_name not in arrays:
        raise InputError(f"{place.label} has no array {group_name!r} (group): give a frame with a group column")
    labels = _target_column(_vector(arrays[target_name], target_name, len(features), place), place, None)
    if (unknown := labels.is_null()).any():
        row = int(unknown.arg_max() or 0)
        raise InputError(
            f"{place.label}, array {target_name!r} has no value (NaN) in row {row}: leave the row out of X and y"
        )
    target_read, found, notes = _target(labels, place, task)
    groups, group_names = (
        _groups(_vector(arrays[group_name], group_name, len(features), place)) if group_name else (None, ())
    )
    return Dataset(
        name=place.path.stem if place.path else "data",
        features=features,
        target=target_read.values,
        task=found,
        target_name=target_name,
        classes=target_read.classes,
        group=groups,
        group_names=group_names,
        source=place.path,
        options={"target": target_name, "task": found.name, "group": group_name, "drop": [], "columns": {}},
        notes=tuple(notes),
    )


def _vector(values: np.ndarray, name: str, rows: int, place: Place) -> pl.Series:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (rows,):
        raise InputError(
            f"{place.label}, array {name!r} must have shape ({rows},), one value a row of X, got {values.shape}"
        )
    column = series(name, values.tolist() if values.dtype.kind in "TmM" else values)
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String)):
        raise InputError(f"{place.label}, array {name!r} must hold numbers, booleans or text, got {column.dtype}")
    return column


def _finite_features(x: np.ndarray, place: Place) -> np.ndarray:
    """``X`` as float32; raise unless it is a table or images of finite numbers."""
    where = f"{place.label}, array 'X'"
    if x.ndim not in (2, 4):
        raise InputError(f"{where} must have shape (n, d), or (n, c, h, w) for images, got {x.shape}")
    if x.dtype.kind not in "biuf":
        raise InputError(f"{where} must hold numbers, got {x.dtype}: give a frame instead, whose columns may hold text")
    if not x.size:
        raise InputError(f"{where} is empty: its shape is {x.shape}")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(x, dtype=np.float32)
    for start in range(0, len(features), 65_536):
        wrong = ~np.isfinite(features[start : start + 65_536])
        if wrong.any():
            index = [int(i) for i in np.argwhere(wrong)[0]]
            index[0] += start
            place_in = ", ".join(map(str, index[1:]))
            raise InputError(
                f"{where} has {x[tuple(index)]} in row {index[0]}, column {place_in}: arrays must be finite in "
                "float32; correct it, or give a frame, where missing values are allowed"
            )
    return features
