"""The encoder, which turns raw columns into numbers. It reads the features only, never the target."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import polars as pl

from lossworks.checks import InputError, check_choice, check_finite, check_int, listed, nearest, shown
from lossworks.comparison.read.columns import as_number, as_text
from lossworks.comparison.read.tables import Place

__all__ = ["Encoder"]

MEMORY = Place("the data")
MOST_LABELS = 100
MICROSECONDS_A_DAY = 86_400_000_000


@dataclass(frozen=True)
class _Column:
    """The encoding of one raw column.

    Attributes:
        varies: Whether the values vary; of a constant column with missing values only the indicator is kept.
        missing: Whether values were missing in training, so that there is an indicator column.
        labels: For a category, its most common texts, sorted.
        other: For a category, whether it had more texts than ``labels``; the others share one column.
        origin: For dates, the earliest date, in days since 1970.
    """

    name: str
    kind: Literal["number", "date", "category"]
    varies: bool
    missing: bool
    labels: tuple[str, ...] = ()
    other: bool = False
    origin: float = 0.0

    @classmethod
    def fit(cls, column: pl.Series) -> Self:
        column = _clean(column)
        present = column.drop_nulls()
        gone = len(present) < len(column)
        if column.dtype == pl.String:
            counts = present.value_counts().sort(["count", column.name], descending=[True, False])
            labels = tuple(sorted(counts[column.name].head(MOST_LABELS).to_list()))
            return cls(column.name, "category", len(labels) > 1, gone, labels, other=len(counts) > MOST_LABELS)
        if column.dtype.is_temporal():
            days = _days(present)
            return cls(column.name, "date", days.n_unique() > 1, gone, origin=float(days.min() or 0))  # type: ignore[arg-type]
        return cls(column.name, "number", bool(present.len()) and present.min() != present.max(), gone)

    @classmethod
    def from_json(cls, described: Any) -> Self:
        """Rebuild the column that ``asdict`` described; raise unless every field has the form of a saved one."""
        kinds = {"name": str, "kind": str, "varies": bool, "missing": bool, "labels": list, "other": bool}
        if not isinstance(described, dict) or set(described) != {*kinds, "origin"}:
            raise ValueError(f"encoder: a column must have the fields {', '.join(kinds)} and origin")
        for name, kind in kinds.items():
            if not isinstance(described[name], kind):
                raise ValueError(f"encoder: {name} must be of type {kind.__name__}, got {shown(described[name])}")
        check_choice("kind", described["kind"], ("number", "date", "category"))
        check_finite("origin", described["origin"])
        labels = described["labels"]
        if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
            raise ValueError("encoder: labels must be different texts")
        if len(labels) > MOST_LABELS or (labels and described["kind"] != "category"):
            raise ValueError(f"encoder: a category has at most {MOST_LABELS} labels, and nothing else has any")
        return cls(**described | {"labels": tuple(labels)})

    @property
    def names(self) -> tuple[str, ...]:
        values: list[str] = []
        if self.varies:
            values = [f"{self.name} = {label}" for label in self.labels] if self.kind == "category" else [self.name]
        if self.other:
            values.append(f"{self.name} = (other)")
        if self.missing:
            values.append(f"{self.name} is missing")
        return tuple(values)

    def write(self, column: pl.Series, out: np.ndarray, place: Place) -> None:
        """Write the encoded column into ``out`` (rows, columns of ``names``); ``place`` is its source, for messages."""
        column = _clean(column)
        if self.missing:
            out[:, -1] = column.is_null().to_numpy()
        if not self.varies:
            return
        if self.kind == "category":
            default = len(self.labels) if self.other else -1
            numbers = {label: i for i, label in enumerate(self.labels)}
            text = as_text(column)
            known = text.replace_strict(numbers, default=default, return_dtype=pl.Int64)
            codes = known.set(text.is_null(), -1).to_numpy()
            out[:, : len(self.labels) + self.other] = 0
            rows = np.flatnonzero(codes >= 0)
            out[rows, codes[rows]] = 1
        elif self.kind == "date":
            if not column.dtype.is_temporal():
                raise InputError(
                    f"{place.label}, column {self.name!r} held dates in training and holds {column.dtype}: give it as "
                    "dates"
                )
            out[:, 0] = (_days(column) - self.origin).cast(pl.Float32).to_numpy()
        else:
            out[:, 0] = self._numbers(column, place).cast(pl.Float32, strict=False).to_numpy()
            if np.isinf(out[:, 0]).any():
                row = int(np.isinf(out[:, 0]).argmax())
                raise InputError(
                    f"{place.label}, column {self.name!r}, {place.row(row)} is infinite or beyond float32 "
                    f"({column[row]}): correct it"
                )

    def _numbers(self, column: pl.Series, place: Place) -> pl.Series:
        where = f"{place.label}, column {self.name!r} held numbers in training"
        if column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
            return column
        if column.dtype != pl.String:
            raise InputError(f"{where} and holds {column.dtype}: give it as numbers")
        numbers = as_number(column.str.to_lowercase().replace({"true": "1", "false": "0"}))
        wrong = numbers.is_null() & column.is_not_null()
        if bool(wrong.any()):
            row = int(wrong.arg_max() or 0)
            raise InputError(f"{where} and {place.row(row)} has {column[row]!r}: correct it, or leave it empty")
        return numbers


def _clean(column: pl.Series) -> pl.Series:
    """The column with missing values as null, and with every type of text as text."""
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        return as_text(column)
    return column.fill_nan(None) if column.dtype.is_float() else column


def _days(column: pl.Series) -> pl.Series:
    return column.cast(pl.Datetime("us")).to_physical() / MICROSECONDS_A_DAY


@dataclass(frozen=True)
class Encoder:
    """Turns frames (or arrays) into one float32 matrix, by an encoding that is fitted on the features of a data set.

    Numbers and booleans keep their values, and a missing one is NaN. Dates become days since the earliest date. Each
    text of a category has a column of its own; if there are more than 100, the rest share one. A column with missing
    values has an indicator column, and constant columns are left out. A text that was not seen in fitting becomes all
    zeros, or "other" if there is such a column. Arrays are not changed.

    >>> encoder = Encoder.fit(pl.DataFrame({"age": [30, None], "town": ["Ulm", "Bonn"]}))
    >>> encoder.names
    ('age is missing', 'town = Bonn', 'town = Ulm')
    >>> encoder.transform(pl.DataFrame({"age": [None], "town": ["Köln"]}))
    array([[1., 0., 0.]], dtype=float32)
    """

    columns: tuple[_Column, ...] = ()
    shape: tuple[int, ...] | None = None

    @classmethod
    def fit(cls, features: pl.DataFrame | np.ndarray) -> Self:
        """Fit the encoding of each column on the features."""
        if isinstance(features, np.ndarray):
            return cls(shape=features.shape[1:])
        columns = tuple(c for c in map(_Column.fit, features) if c.names)
        if not columns:
            raise InputError(
                f"none of the columns {listed(features.columns)} varies, so there is nothing to learn from"
            )
        return cls(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the encoded columns, in order; those of an array are its indices."""
        if self.shape is not None:
            return tuple("column " + ",".join(map(str, index)) for index in np.ndindex(self.shape))
        return tuple(name for column in self.columns for name in column.names)

    @property
    def width(self) -> tuple[int, ...]:
        """The shape of one encoded row."""
        return (len(self.names),) if self.shape is None else self.shape

    def transform(self, features: pl.DataFrame | np.ndarray, place: Place = MEMORY) -> np.ndarray:
        """Encode the features as float32 ``(n, d)``, or ``(n, *shape)`` for arrays; unknown columns are ignored.

        ``place`` is the source of the features, for messages.
        """
        if self.shape is not None:
            return self._array(features, place)
        if not isinstance(features, pl.DataFrame):
            names = listed([c.name for c in self.columns])
            raise InputError(
                f"{place.label}: a table with the columns {names} is needed, got an array of shape {features.shape}"
            )
        if absent := [c.name for c in self.columns if c.name not in features.columns]:
            raise InputError(
                f"{place.label} lacks the column{'s' * (len(absent) > 1)} {listed(absent)}"
                f"{nearest(absent[0], features.columns)}"
            )
        widths = [len(c.names) for c in self.columns]
        out = np.empty((features.height, sum(widths)), dtype=np.float32)
        for column, width, end in zip(self.columns, widths, np.cumsum(widths), strict=True):
            column.write(features[column.name], out[:, end - width : end], place)
        return out

    def _array(self, features: pl.DataFrame | np.ndarray, place: Place) -> np.ndarray:
        assert self.shape is not None
        if not isinstance(features, np.ndarray) or features.shape[1:] != self.shape:
            wanted = ", ".join(["n", *map(str, self.shape)])
            got = features.shape if isinstance(features, np.ndarray) else f"a table of {features.width} columns"
            raise InputError(f"{place.label}: an array of shape ({wanted}) is needed, got {got}")
        return np.ascontiguousarray(features, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """Describe the encoder as JSON values, from which ``from_json`` builds an equal one."""
        shape = None if self.shape is None else list(self.shape)
        columns = [asdict(column) | {"labels": list(column.labels)} for column in self.columns]
        return {"shape": shape, "columns": columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Rebuild the encoder that ``to_json`` described.

        Raises:
            ValueError: a field is unknown, missing or of the wrong type.
        """
        if set(data) != {"shape", "columns"} or not isinstance(data["columns"], list):
            raise ValueError("encoder must have the fields shape and columns")
        columns, shape = tuple(_Column.from_json(column) for column in data["columns"]), data["shape"]
        if len({column.name for column in columns}) < len(columns):
            raise ValueError("encoder: two columns have one name")
        if (shape is None) != bool(columns):
            raise ValueError("encoder must have either columns or a shape")
        if shape is None:
            return cls(columns)
        if not isinstance(shape, list) or len(shape) not in (1, 3):
            raise ValueError(f"encoder: shape must be [d] or [c, h, w], got {shown(shape)}")
        return cls(shape=tuple(check_int("shape", size, low=1) for size in shape))
