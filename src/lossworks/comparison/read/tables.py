"""Loading of files and objects in memory as one raw polars frame, or as the arrays of an NPZ file."""

import codecs
import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import polars as pl
import polars.selectors as cs

from lossworks.checks import InputError, nearest
from lossworks.comparison.read.npz import Arrays, read_npz

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Arrays", "Place", "load", "series"]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".arrow", ".feather", ".ipc", ".npz")
POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""The errors of polars: a damaged file can make it panic, which is not an ``Exception``."""
ARROW = (ValueError, TypeError, KeyError, IndexError, NotImplementedError, MemoryError, OSError)
"""The classes that pyarrow's errors are derived from."""
BLOCK = 1 << 16
LONGEST_HEADER = 1 << 26
"""How many bytes of a text file are read in search of the end of its first line."""
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "?"]


@dataclass(frozen=True)
class Place:
    """The source of data, for messages: a delimited file counts lines from 1, all other sources count rows from 0."""

    label: str
    path: Path | None = None
    lines: bool = False

    def row(self, number: int) -> str:
        """The name of this row in the source, such as ``line 2`` or ``row 0``."""
        return f"line {number + 2}" if self.lines else f"row {number}"


def load(data: Any, *, exact: str | None = None, arrays: Sequence[str] = ("X",)) -> tuple[pl.DataFrame | Arrays, Place]:
    """Load the raw table or arrays of ``data``; floats become float32, except those of the column ``exact``."""
    if isinstance(data, (str, Path)):
        try:
            path = Path(data).expanduser()
            _check_file(path)
        except (OSError, RuntimeError) as error:  # the name is too long, or there is no such user
            raise InputError(f"{data}: no such file ({error})") from None
        return _read(path, exact, arrays)
    place = Place("the data")
    if isinstance(data, tuple) and len(data) == 2 and not hasattr(data[0], "columns"):
        names = (arrays[0], arrays[1] if len(arrays) > 1 else "y")
        return {name: _as_array(name, values) for name, values in zip(names, data, strict=True)}, place
    if isinstance(data, np.ndarray):
        return {arrays[0]: data}, place
    return _narrow(_frame(data), exact), place


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        hint = f"give a file in it, such as {inside[0]!r}" if inside else "give a file"
        raise InputError(f"{path} is a folder: {hint}")
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"{path} does not exist: there is no folder {str(folder)!r}")
        raise InputError(
            f"{path} does not exist{nearest(path.name, (p.name for p in folder.iterdir())) or ': check its name'}"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} has the unknown suffix {path.suffix!r}: save it as one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: it has no bytes; save the table again")


def _read(path: Path, exact: str | None, arrays: Sequence[str]) -> tuple[pl.DataFrame | Arrays, Place]:
    suffix = path.suffix.lower()
    try:
        if suffix == ".npz":
            return read_npz(path, arrays), Place(str(path), path)
        if suffix in (".csv", ".tsv", ".txt"):
            return _delimited(path, exact), Place(str(path), path, lines=True)
        lazy = pl.scan_parquet(path) if suffix in (".parquet", ".pq") else _arrow(path).lazy()
        table = _narrow(lazy, exact)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path} cannot be opened: you have no permission to read it") from None
    except (*POLARS, *ARROW) as error:
        what = "a Parquet" if suffix in (".parquet", ".pq") else "an Arrow"
        raise InputError(
            f"{path} is not {what} file: {_first_line(error)}; save it again or correct its suffix"
        ) from None
    if table.height == 0:
        raise InputError(f"{path} has no rows; save the table again")
    return table, Place(str(path), path)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _narrow(frame: pl.DataFrame | pl.LazyFrame, exact: str | None) -> pl.DataFrame:
    floats = cs.by_dtype(pl.Float64)
    if exact is not None:
        floats = floats - cs.by_name(exact, require_all=False)
    return frame.lazy().with_columns(floats.cast(pl.Float32)).collect(engine="streaming")


# Objects in memory


def _frame(data: Any) -> pl.DataFrame:
    if isinstance(data, pl.LazyFrame):
        return data.collect(engine="streaming")
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, Mapping):
        data = {str(name): _column_values(name, values) for name, values in data.items()}
        lengths = {name: len(values) for name, values in data.items()}
        if len(set(lengths.values())) > 1:
            short, long = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            raise InputError(
                f"the data's columns differ in length: {short!r} has {lengths[short]} rows, "
                f"{long!r} has {lengths[long]}"
            )
        return pl.DataFrame([series(name, values) for name, values in data.items()])
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "columns"):
        frame, target = _frame(data[0]), _as_array("y", data[1])
        if "y" in frame.columns:
            raise InputError("X has a column 'y' beside the y given: rename it, or give one frame and target='y'")
        if target.shape != (frame.height,):
            raise InputError(f"y must have shape ({frame.height},), one value a row of X, got {target.shape}")
        return frame.with_columns(series("y", target))
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        names = [str(name) for name in data.columns]
        _check_names(names, "the data")
        return pl.DataFrame([_from_pandas(name, data.iloc[:, i]) for i, name in enumerate(names)])
    raise InputError(
        f"data must be a path, a polars or pandas frame, a dict of columns or a tuple (X, y), got {type(data).__name__}"
    )


def _as_array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError(f"{name} must be an array: it holds lists of different lengths") from None


def _column_values(name: object, values: Any) -> Any:
    if isinstance(values, pl.Series):
        return values
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"the data's column {name!r} must be a list or an array, got {type(values).__name__}")
    try:
        return list(values)
    except TypeError:  # an array of no dimension
        raise InputError(f"the data's column {name!r} must be a list or an array, got a single value") from None


def series(name: str, values: Any) -> pl.Series:
    """The values as a column of their common type; NaN becomes missing."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    if isinstance(values, list):
        values = _known(values)
    with _one_type(name):
        return pl.Series(name, values, strict=False, nan_to_null=True)


def _known(values: list[Any]) -> list[Any]:
    """The values with decimals that are not finite replaced, because polars takes only finite decimals."""
    return [value if not isinstance(value, Decimal) or value.is_finite() else _float(value) for value in values]


def _float(value: Decimal) -> float | None:
    return None if value.is_nan() else float(value)


@contextlib.contextmanager
def _one_type(name: str) -> Iterator[None]:
    try:
        yield
    except (*POLARS, TypeError, ValueError, ArithmeticError, NotImplementedError):
        raise InputError(
            f"the data's column {name!r} holds values that have no type in common: give numbers, or text (str(value))"
        ) from None


def _from_pandas(name: str, column: Any) -> pl.Series:
    if str(column.dtype) != "object":
        with _one_type(name):
            return pl.Series(pl.from_pandas(column)).alias(name)
    cells = _known(list(column))
    missing = type(column)(cells, dtype=object).isna()  # which a decimal that signals would end
    return series(name, [None if gone else value for value, gone in zip(cells, missing, strict=True)])


def _check_names(names: Sequence[str], where: str) -> None:
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in first:
            raise InputError(f"{where}: columns {first[name]} and {number} are both named {name!r}; rename one of them")
        first[name] = number


# Delimited text


def _delimited(path: Path, exact: str | None) -> pl.DataFrame:
    header = _header(path)
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    try:
        cells = next(csv.reader([header], delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{path}, line 1 cannot be read: {error}") from None
    names = [name.strip() or f"column {number}" for number, name in enumerate(cells, start=1)]
    _check_names(names, f"{path}, line 1")
    options: dict[str, Any] = {
        "separator": separator,
        "null_values": MISSING,
        "decimal_comma": separator == ";" and _has_decimal_commas(path),
    }
    try:
        try:
            table = _scan(path, exact, options, rows=10_000)
        except pl.exceptions.ComputeError as error:
            if "fields" in str(error) or "utf-8" in str(error):
                raise
            table = _scan(path, exact, options, rows=None)  # later rows of a column have another type than its first
    except POLARS as error:
        _check_text(path)
        _check_ragged(path, separator, len(names))
        raise InputError(f"{path} cannot be read as a table: {_first_line(error)}") from None
    if table.height == 0:
        raise InputError(f"{path} has a header and no rows; save the table again")
    if table.width != len(names):
        raise InputError(f"{path}, line 1: the header cannot be read; write each column's name on one line")
    if table.width > 1 and table.to_series(-1).null_count():  # polars fills short rows, so they show in the last column
        _check_ragged(path, separator, len(names))
    table.columns = names
    return table


def _scan(path: Path, exact: str | None, options: dict[str, Any], rows: int | None) -> pl.DataFrame:
    schema = pl.scan_csv(path, infer_schema_length=rows, **options).collect_schema()
    narrow = {name: pl.Float32() for name, dtype in schema.items() if dtype == pl.Float64 and name.strip() != exact}
    return pl.scan_csv(path, schema=pl.Schema({**schema, **narrow}), **options).collect(engine="streaming")


def _header(path: Path) -> str:
    with path.open("rb") as file:
        start = _first_line_of(file)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path} is UTF-16 text: save it as UTF-8")
    if b"\0" in start:
        raise InputError(
            f"{path} is not a table of text: byte {start.index(0)} is zero; give a CSV file or correct its suffix"
        )
    if len(start) > LONGEST_HEADER:
        raise InputError(f"{path}, line 1 has no end within {LONGEST_HEADER} bytes: the first line must hold the names")
    line = start.removeprefix(codecs.BOM_UTF8).splitlines()[0] if start.removeprefix(codecs.BOM_UTF8) else b""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        _check_text(path)
        raise
    if not text.strip():
        if not start.strip():
            raise InputError(f"{path} is empty: it has only blank lines; save the table again")
        raise InputError(f"{path}, line 1 is blank: the first line must hold the columns' names")
    return text


def _first_line_of(file: BinaryIO) -> bytes:
    """The beginning of the file, at least up to the end of its first line unless that is too long for a header."""
    parts = [file.read(BLOCK)]
    while len(parts[-1]) == BLOCK and len(parts) * BLOCK <= LONGEST_HEADER and not re.search(rb"[\r\n]", parts[-1]):
        parts.append(file.read(BLOCK))
    return b"".join(parts)


def _has_decimal_commas(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        sample = "".join(line for line, _ in zip(file, range(100), strict=False))
    return re.search(r"(^|;)-?\d+,\d+(;|$)", sample, re.MULTILINE) is not None


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise InputError(
                    f"{path}, line {number} is not UTF-8 text (byte 0x{byte:02X}): "
                    "save it as UTF-8, or correct its suffix"
                ) from None


def _check_ragged(path: Path, separator: str, width: int) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        try:
            for row in reader:
                if row and len(row) != width:
                    raise InputError(
                        f"{path}, line {reader.line_num} has {len(row)} values where the header has {width} columns: "
                        "correct the line, or quote a value that holds the separator"
                    )
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} cannot be read: {error}") from None


# Binary files


def _arrow(path: Path) -> pl.DataFrame:
    """Read an Arrow file by pyarrow and check it, because some damaged files make polars end the whole process."""
    import pyarrow as pa  # slow to import

    with pa.OSFile(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            table = pa.ipc.open_stream(file).read_all()
    table.validate(full=True)
    columns = [_followed_by_polars(column) for column in table.columns]
    return pl.DataFrame(pl.from_arrow(pa.table(columns, names=table.column_names)))


def _followed_by_polars(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """The column without the parts that validation does not check and that polars would follow to any address.

    These are the views of texts under missing values. Nested values can be neither features nor targets, so they are
    replaced by missing ones.
    """
    import pyarrow as pa

    if pa.types.is_nested(column.type):
        return pa.chunked_array([pa.nulls(len(column), column.type)])
    return pa.chunked_array([_cleared(chunk) for chunk in column.chunks], column.type)


def _cleared(array: "pa.Array") -> "pa.Array":
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, _cleared(array.dictionary), ordered=kind.ordered)
    if not array.null_count or not (pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)):
        return array
    validity, views, *texts = array.buffers()
    cleared = np.frombuffer(views, np.int32).reshape(-1, 4).copy()
    here = cleared[array.offset : array.offset + len(array)]
    here[array.is_null().to_numpy(zero_copy_only=False)] = 0
    buffers = [validity, pa.py_buffer(cleared), *texts]
    return pa.Array.from_buffers(kind, len(array), buffers, array.null_count, array.offset)
