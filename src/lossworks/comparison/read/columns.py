"""Reading of single columns as numbers, texts or dates, as found or as the user says (``--as NAME=KIND``)."""

import shlex

import polars as pl

from lossworks.checks import InputError, nearest
from lossworks.comparison.read.tables import Place

__all__ = ["MOST_CLASSES_OF_NUMBERS", "as_number", "as_text", "check_kind", "prepare", "way_on"]

KINDS = ("category", "date", "number")
MOST_TEXTS = 1000
MOST_CLASSES_OF_NUMBERS = 20
"""The largest number of different numbers that may be class labels."""
MOSTLY = 0.8  # from this share of numbers on, a column of texts is taken for numbers with a few wrong entries

DATE = r"^\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ]\d{1,2}:\d{2}.*)?\s*$"
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y")
TIMES = ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", "T%H:%M:%S%.f%#z", " %H:%M:%S%.f%#z")


def way_on(name: str, *kinds: str) -> str:
    """The advice of an error message: which options to use for a column that cannot be read as it is."""
    quoted = shlex.quote(name)
    ways = [f"--drop {quoted}", *(f"--as {quoted}={kind}" for kind in kinds)]
    return f"use {' or '.join(ways)} (in Python drop=, columns=)"


def check_kind(name: str, kind: str) -> None:
    """Raise unless ``kind`` names a way to read a column."""
    if kind not in KINDS and not kind.startswith("date:"):
        raise InputError(
            f"column {name!r} cannot be read as {kind!r}{nearest(kind, KINDS)}; "
            f"the kinds are {', '.join(KINDS)} and date:FORMAT"
        )


def prepare(column: pl.Series, place: Place, kind: str | None = None) -> tuple[pl.Series, str | None]:
    """Read the column as numbers, booleans, texts or datetimes; return it with its kind, including a date's format."""
    if kind == "category":
        return as_text(column), kind
    if kind == "number":
        number = column.to_physical() if column.dtype.is_temporal() else _coerced(column)
        return _checked_numbers(number, place), kind
    if kind is not None:
        return _dates(column, place, kind.partition(":")[2])
    return _as_found(column, place), None


def _as_found(column: pl.Series, place: Place) -> pl.Series:
    dtype, where = column.dtype, f"{place.label}, column {column.name!r}"
    if dtype.is_numeric():
        return _checked_numbers(column, place)
    if dtype.is_temporal():
        raise InputError(f"{where} holds dates or times ({dtype}): {way_on(column.name, 'date', 'category')}")
    if dtype in (pl.Boolean, pl.Null):
        return column
    if dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise InputError(
            f"{where} holds {dtype}, which is neither numbers nor text: use --drop {shlex.quote(column.name)}"
        )
    text = as_text(column)
    if dtype == pl.String:
        numbers = as_number(text)
        known, found = len(text) - text.null_count(), len(text) - numbers.null_count()
        if known and found == known:
            return _checked_numbers(numbers, place)
        if found >= MOSTLY * known > 0:
            row = _first(numbers.is_null() & text.is_not_null())
            raise InputError(
                f"{where} mixes numbers with text: {place.row(row)} has {text[row]!r}; correct it, or "
                f"{way_on(column.name, 'number', 'category')}"
            )
        if known and int(text.str.contains(DATE).sum()) >= 0.95 * known:
            row = _first(text.is_not_null())
            raise InputError(
                f"{where} holds dates ({place.row(row)} has {text[row]!r}): {way_on(column.name, 'date', 'category')}"
            )
    if (distinct := text.drop_nulls().n_unique()) > MOST_TEXTS:
        row = _first(text.is_not_null())
        raise InputError(
            f"{where} holds {distinct:,} different texts such as {text[row]!r} ({place.row(row)}), more than "
            f"{MOST_TEXTS:,}: {way_on(column.name, 'category')}; a category keeps its 100 most common texts"
        )
    return text


def _first(mask: pl.Series) -> int:
    return int(mask.arg_max() or 0)


def as_text(column: pl.Series) -> pl.Series:
    """The values as texts without surrounding blanks; whole numbers have no decimal point, empty texts are missing."""
    if column.dtype.is_float():
        whole = column.fill_nan(None).drop_nulls()
        if bool((whole == whole.round(0)).all()) and bool((whole.abs() < 2**53).all()):
            column = column.fill_nan(None).cast(pl.Int64)
    if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Binary):
        raise InputError(f"column {column.name!r} holds {column.dtype}, which is neither numbers nor text: correct it")
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None) if bool((text == "").any()) else text


def as_number(text: pl.Series) -> pl.Series:
    """The texts as float64; a text that is not a number becomes missing."""
    return text.str.strip_chars().cast(pl.Float64, strict=False).fill_nan(None)


def _coerced(column: pl.Series) -> pl.Series:
    return column if column.dtype.is_numeric() or column.dtype == pl.Boolean else as_number(as_text(column))


def _checked_numbers(column: pl.Series, place: Place) -> pl.Series:
    if column.dtype == pl.Boolean:
        return column
    if column.dtype.is_integer() and column.dtype not in (pl.Int128, pl.UInt128):
        return column.shrink_dtype()
    numbers = column.cast(pl.Float32, strict=False).fill_nan(None)
    infinite = numbers.is_infinite().fill_null(False)
    if bool(infinite.any()):
        row = _first(infinite)
        raise InputError(
            f"{place.label}, column {column.name!r}, {place.row(row)} is infinite or beyond float32 ({column[row]}): "
            f"correct it, leave it empty if it is unknown, or use --drop {shlex.quote(column.name)}"
        )
    return numbers


def _dates(column: pl.Series, place: Place, given: str) -> tuple[pl.Series, str]:
    if column.dtype in (pl.Date, pl.Datetime):
        local = column.dt.replace_time_zone(None) if column.dtype == pl.Datetime else column
        return local.cast(pl.Datetime("us")), "date"
    text = as_text(column)
    sample = text.drop_nulls().head(100)
    formats = [given] if given else [day + time for day in DAYS for time in TIMES]
    candidates = [f for f in formats if given or not _parsed(sample, f).null_count()]
    fitting = [f for f in candidates if given or _parsed(text, f).null_count() == text.null_count()]
    where = f"{place.label}, column {column.name!r}"
    if len(fitting) > 1:
        ways = " or ".join(f"--as {shlex.quote(column.name + '=date:' + f)}" for f in fitting)
        raise InputError(f"{where}: its dates can be read in more than one way: use {ways}")
    chosen = (fitting or candidates or formats)[0]
    dates = _parsed(text, chosen)
    wrong = dates.is_null() & text.is_not_null()
    if bool(wrong.any()):
        row = _first(wrong)
        raise InputError(
            f"{where}, {place.row(row)} is no date: {text[row]!r}; correct it, or name the format as in "
            f"--as {shlex.quote(column.name + '=date:%d.%m.%Y')}"
        )
    return dates, f"date:{chosen}"


def _parsed(text: pl.Series, pattern: str) -> pl.Series:
    dates = text.str.to_datetime(pattern, time_unit="us", strict=False)
    return dates.dt.replace_time_zone(None) if "z" in pattern else dates
