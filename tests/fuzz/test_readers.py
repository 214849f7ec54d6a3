"""Every way into a table: files of any bytes, files that were valid once, and objects of any kind."""

import io
import string
from pathlib import Path

import fuzzing
import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from fuzzing import ACCEPTED, REFUSED, check_error, seeds

from lossworks.comparison import Dataset, Encoder, InputError, read
from lossworks.comparison.findings import examine
from lossworks.comparison.read.dataset import check_folds, read_features

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".arrow", ".feather", ".ipc", ".npz")
ENCODINGS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "latin-1",
    "cp1252",
    "shift_jis",
    "gb18030",
    "utf-7",
)
names = st.sampled_from(["a", "b", "y", "", " a", "a", "x y", "'", '"', "\u2028", "-", "=1", "<b>", "n" * 300, "y "])
cells = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "yes", "no", "1.5", "-3", "", "NA", "NaN", "inf", "-inf", "1e400", "9" * 40, "1,5"]
    ),
    st.sampled_from(
        ["2024-01-31", "31.01.2024", "01/02/2024", "2024-02-30", "2024-01-31T10:00:00+02:00", "99999-01-01"]
    ),
    st.sampled_from(['"', '"a', 'a"b', "a;b", "a,b", "a\nb", "\x00", "\u202e", "TRUE", "false", "0x10", "1_000", "١٢"]),
    st.integers(-5, 5).map(str),
    st.floats().map(str),
    st.text(max_size=5),
    st.text(string.printable, max_size=5),
)
PLAIN = [["0", "1"], ["1", "2", "3.5", ""], ["yes", "no"], ["x", "z", "w"], ["-0.5", "0.25", "1e3", "7", "2"]]
"""What the columns of a table hold that is as it should be."""
options = st.fixed_dictionaries(
    {},
    optional={
        "target": st.sampled_from(["y", "a", "b", "", "z", " a"]) | st.none(),
        "task": st.sampled_from(["binary", "multiclass", "real", "reel"]),
        "group": st.sampled_from(["b", "a", "y", "z"]),
        "drop": st.lists(st.sampled_from(["a", "b", "y", "z"]), max_size=2),
        "columns": st.dictionaries(
            st.sampled_from(["a", "b", "y", "z"]),
            st.sampled_from(
                ["category", "number", "date", "date:%d.%m.%Y", "date:%", "date:", "date:%Q%%z", "daet", ""]
            ),
            max_size=2,
        ),
    },
)


def frame_of(seed, rows=30):
    random = np.random.default_rng(seed)
    columns = {
        "a": random.normal(size=rows),
        "b": random.choice(["Ulm", "Bonn", None], rows).tolist(),
        "c": random.integers(0, 2**40, rows),
        "d": [f"{1 + i % 28:02d}.01.2024" for i in range(rows)],
        "e": random.random(rows) > 0.5,
        "y": random.integers(0, 3, rows),
    }
    kept = [name for name in columns if random.random() < 0.7 or name in "ay"]
    return pl.DataFrame({name: columns[name] for name in kept})


def valid(suffix, seed):
    frame, out = frame_of(seed), io.BytesIO()
    if suffix == ".npz":
        random = np.random.default_rng(seed)
        write = np.savez_compressed if seed % 2 else np.savez
        write(out, X=random.normal(size=(30, 3)).astype("f4"), y=random.integers(0, 2, 30))
    elif suffix in (".parquet", ".pq"):
        compression = ("uncompressed", "zstd", "snappy", "lz4")[seed % 4]
        frame.write_parquet(out, compression=compression, row_group_size=10 if seed % 3 else None)
    elif suffix in (".arrow", ".feather", ".ipc"):
        write = frame.write_ipc_stream if seed % 2 else frame.write_ipc
        write(out, compression=("uncompressed", "zstd", "lz4")[seed % 3])
    else:
        frame.write_csv(out, separator={".tsv": "\t"}.get(suffix, ",;|"[seed % 3]))
    return out.getvalue()


def spoiled(data, edits):
    """The bytes after a few edits: of one byte, of many, in the middle or at an end."""
    data = bytearray(data)
    for kind, at, value in edits:
        at = at % (len(data) + 1)
        length = 1 + value % 40
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << value % 8
        elif kind == "set":
            data[at : at + 1] = bytes([value % 256])
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "copy":
            data[at:at] = data[at // 2 : at // 2 + length]
        elif kind == "tail":  # where Parquet, Arrow and NPZ keep what they hold
            place = max(len(data) - 1 - at % 300, 0)
            data[place : place + 1] = bytes([value % 256])
        elif kind == "ones":
            data[at : at + 4] = b"\xff" * 4
    return bytes(data)


edits = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "end", "copy", "tail", "tail", "ones"]), seeds, seeds), max_size=4
)


def use(data, given):
    """Read it as ``compare`` does, and go on as far as there is data."""
    try:
        dataset = read(data, **given)
        assert isinstance(dataset, Dataset)
        check_folds(dataset, 2)
        encoder = Encoder.fit(dataset.features)
        matrix = encoder.transform(dataset.features)
        assert len(matrix) == len(dataset.target)
        assert not np.isinf(matrix).any()
        assert Encoder.from_json(encoder.to_json()) == encoder
        examine(dataset, matrix, seed=0)
        encoder.transform(*read_features(data, dataset.options))
    except InputError as error:
        check_error(error)
        return REFUSED
    return ACCEPTED


@pytest.fixture
def use_file(tmp_path):
    def use_(suffix, content, given):
        path = tmp_path / f"data{suffix}"
        path.write_bytes(content)
        return use(path, given)

    return use_


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes(suffix, fuzz, use_file):
    starts = st.sampled_from(
        [b"", b"PAR1", b"ARROW1\0\0", b"PK\x03\x04", b"\x93NUMPY", b"a,y\n", b"\xef\xbb\xbf", b"\xff\xfe"]
    )
    strategy = st.tuples(starts, st.binary(max_size=200), st.sampled_from([b"", b"PAR1", b"ARROW1"]), options)
    fuzz(strategy, lambda given: use_file(suffix, b"".join(given[:3]), given[3]), alike=True)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow", ".npz"])
def test_spoiled_file(suffix, fuzz, use_file):
    files = [valid(suffix, seed) for seed in range(24)]
    strategy = st.tuples(st.sampled_from(files), edits, options)
    fuzz(strategy, lambda given: use_file(suffix, spoiled(given[0], given[1]), {"target": "y"} | given[2]))


@st.composite
def texts(draw):
    """A table as text, more or less."""
    header = draw(st.sampled_from([["a", "y"], ["b", "y", "a"]]) | st.lists(names, min_size=1, max_size=4))
    kinds = [draw(st.sampled_from(PLAIN) | st.lists(cells, min_size=1, max_size=4)) for _ in header]
    rows = []
    for number in range(draw(st.just(24) | st.integers(0, 25))):
        row = [kind[(number * 7 + place) % len(kind)] for place, kind in enumerate(kinds)]
        rows.append(row)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2])) if rows else 0):
        place = draw(st.integers(0, len(rows) - 1))
        rows[place] = draw(st.lists(cells, max_size=5))
    separator = draw(st.just(",") | st.sampled_from([",", ";", "\t", "|", " ", ",,"]))
    quoted = draw(st.booleans())
    lines = [separator.join(f'"{cell}"' if quoted else cell for cell in row) for row in [header, *rows]]
    text = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])).join(lines)
    return text.encode(draw(st.just("utf-8") | st.sampled_from(ENCODINGS)), "replace")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_table(suffix, fuzz, use_file):
    fuzz(st.tuples(texts(), options), lambda given: use_file(suffix, given[0], {"target": "y"} | given[1]))


objects = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.binary(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
    st.complex_numbers(),
)
DTYPES = ("f2", "f4", "f8", "i1", "i8", "u8", "?", "c8", "U3", "S2", "M8[D]", "m8[s]", "O", [("p", "f4"), ("q", "i2")])


@st.composite
def values(draw, rows):
    """A column of one kind, or of several."""
    pool = draw(st.lists(objects, min_size=1, max_size=3) | st.lists(st.sampled_from([0, 1, 2, "a", "b"]), min_size=1))
    return [pool[(number * 5) % len(pool)] for number in range(rows)]


def numpy_of(shape, dtype, seed):
    random = np.random.default_rng(seed)
    data = random.integers(-2, 3, shape)
    try:
        array = data.astype(dtype)
    except (TypeError, ValueError):
        array = np.zeros(shape, dtype)
    if array.dtype.kind == "f" and array.size and seed % 4 == 0:
        array.flat[seed % array.size] = (np.nan, np.inf)[seed % 8 == 0]
    if array.dtype.kind == "O" and array.size and seed % 2:
        array.flat[0] = ("text", None, [1], 2**70)[seed % 4]
    return array


arrays = st.builds(
    numpy_of, st.lists(st.sampled_from([0, 1, 2, 12]), max_size=4).map(tuple), st.sampled_from(DTYPES), seeds
)


@st.composite
def tables(draw):
    """A dict, a frame of polars or pandas, or arrays."""
    rows = draw(st.sampled_from([0, 1, 2, 12, 12]))
    kind = draw(st.sampled_from(["dict", "polars", "pandas", "lazy", "pair", "array", "anything", "frame and y"]))
    if kind == "pair":
        n = draw(st.sampled_from([0, 1, 12, 12, 12]))
        if draw(st.booleans()):
            return numpy_of((n, 2), "f4", draw(seeds)), numpy_of((n,), draw(st.sampled_from(DTYPES)), draw(seeds))
        return draw(arrays), draw(arrays)
    if kind == "array":
        return draw(arrays)
    if kind == "anything":
        return draw(fuzzing.junk | st.tuples(objects, objects) | st.lists(objects, max_size=2))
    columns = {name: draw(values(rows)) for name in draw(st.lists(st.sampled_from(["a", "b", "y", "c"]), max_size=4))}
    if kind == "dict":
        if columns and draw(st.integers(0, 5)) == 0:
            columns["b"] = draw(objects | arrays | values(3))
        return columns
    if kind == "pandas":
        import pandas as pd

        frame = pd.DataFrame(columns)
        if len(frame.columns) and draw(st.integers(0, 5)) == 0:
            frame.columns = ["a"] * len(frame.columns)
        return frame.astype("category") if draw(st.integers(0, 5)) == 0 and len(frame) and _hashable(columns) else frame
    try:
        frame = pl.DataFrame({name: pl.Series(name, column, strict=False) for name, column in columns.items()})
    except (Exception, pl.exceptions.PanicException):  # what polars itself cannot hold
        return columns
    if kind == "frame and y":
        return frame, draw(arrays | values(frame.height))
    return frame.lazy() if kind == "lazy" else frame


def _hashable(columns):
    return all(isinstance(value, (int, str, float)) for column in columns.values() for value in column)


def test_objects(fuzz):
    fuzz(st.tuples(tables(), options), lambda given: use(given[0], given[1]))


def test_path(fuzz, tmp_path):
    content = "a,y\n" + "1,0\n2,1\n" * 12
    (tmp_path / "data.csv").write_text(content)
    (tmp_path / "folder.csv").mkdir()
    pieces = st.sampled_from(
        [
            "data.csv",
            "folder.csv",
            "..",
            "nowhere",
            "data.csv/x",
            "\x00",
            "a" * 300,
            "*.csv",
            "data.xls",
            "[d]ata.csv",
            "",
            "~",
            "~nobody/x.csv",
            "\udcff.csv",
        ]
    )
    strategy = st.lists(pieces | st.text(max_size=4), min_size=1, max_size=3)

    def check(given):
        path = "/".join(given)
        if path.startswith(("/", "~")) and len(given) == 1 and given[0] != "~nobody/x.csv":
            path = f"./{path}"
        return use(f"{tmp_path}/{path}" if not path.startswith("~") else path, {"target": "y"})

    fuzz(strategy, check)
    assert Path(tmp_path / "data.csv").read_text() == content
