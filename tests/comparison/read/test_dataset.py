"""Reading: every format gives the same data set, and every bad input says in one line what, where and what to do."""

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from lossworks.checks import InputError
from lossworks.comparison.read import npz, tables
from lossworks.comparison.read.columns import as_text
from lossworks.comparison.read.dataset import check_folds, embedded, read, read_features
from lossworks.comparison.read.encode import Encoder
from lossworks.comparison.read.tables import load

ROWS = 40


@pytest.fixture
def frame() -> pl.DataFrame:
    numbers = np.random.default_rng(0).normal(size=ROWS)
    return pl.DataFrame(
        {
            "age": list(range(20, 20 + ROWS)),
            "income": [None if i == 3 else float(x) for i, x in enumerate(numbers)],
            "town": ["Ulm" if i % 3 else "Bonn" for i in range(ROWS)],
            "churn": ["yes" if i % 4 == 0 else "no" for i in range(ROWS)],
        }
    )


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def table(**columns: list) -> pl.DataFrame:
    """Forty rows with a harmless feature and target, and the given columns."""
    rows = len(next(iter(columns.values()))) if columns else ROWS
    return pl.DataFrame(
        {"x": [i / 7 for i in range(rows)], **columns, "y": ["a" if i % 2 else "b" for i in range(rows)]}
    )


def error(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        read(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is read


def _csv(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_csv(path.with_suffix(".csv"))
    return path.with_suffix(".csv")


def _tsv(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_csv(path.with_suffix(".tsv"), separator="\t")
    return path.with_suffix(".tsv")


def _semicolons(frame: pl.DataFrame, path: Path) -> Path:
    text = frame.write_csv(separator=";").replace(".", ",")
    path.with_suffix(".csv").write_text("\ufeff" + text, encoding="utf-8")
    return path.with_suffix(".csv")


def _parquet(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def _arrow(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_ipc(path.with_suffix(".arrow"))
    return path.with_suffix(".arrow")


def _arrow_stream(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_ipc_stream(path.with_suffix(".arrow"))
    return path.with_suffix(".arrow")


def _feather_of_pandas(frame: pl.DataFrame, path: Path) -> Path:
    frame.to_pandas().to_feather(path.with_suffix(".feather"))
    return path.with_suffix(".feather")


FORMS = {
    "csv": _csv,
    "tsv": _tsv,
    "semicolons, decimal commas, BOM": _semicolons,
    "parquet": _parquet,
    "arrow": _arrow,
    "arrow stream": _arrow_stream,
    "feather": _feather_of_pandas,
    "polars": lambda frame, _: frame,
    "lazy": lambda frame, _: frame.lazy(),
    "pandas": lambda frame, _: frame.to_pandas(),
    "dict": lambda frame, _: frame.to_dict(as_series=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_the_same_data_set(form, frame, tmp_path):
    data = FORMS[form](frame, tmp_path / "customers")
    dataset = read(data, target="churn", group="town")
    assert (dataset.task.name, dataset.classes, dataset.group_names) == ("binary", ("no", "yes"), ("Bonn", "Ulm"))
    assert dataset.target.tolist() == [int(label == "yes") for label in frame["churn"]]
    assert dataset.target.dtype == np.int64
    assert dataset.group.tolist() == [int(town == "Ulm") for town in frame["town"]]
    assert dataset.features.columns == ["age", "income"]
    matrix = Encoder.fit(dataset.features).transform(dataset.features)
    np.testing.assert_allclose(matrix[:, 1], frame["income"].cast(pl.Float32).to_numpy(), rtol=1e-6)
    if isinstance(data, Path):
        assert (dataset.name, dataset.source) == ("customers", data)
        again = read(dataset.source, **json.loads(json.dumps(dataset.options)))
        assert again.features.equals(dataset.features)


def test_the_group_of_a_row_without_a_target_is_dropped_with_the_row(frame):
    missing = [0, 5, 6]
    churn = pl.Series("churn", [None if i in missing else value for i, value in enumerate(frame["churn"])])
    dataset = read(frame.with_columns(churn), target="churn", group="town")
    kept = [i for i in range(ROWS) if i not in missing]
    assert dataset.group.tolist() == [int(frame["town"][i] == "Ulm") for i in kept]
    assert dataset.features["age"].to_list() == [20 + i for i in kept]
    assert dataset.target.tolist() == [int(frame["churn"][i] == "yes") for i in kept]


def test_arrays_are_read_from_npz_and_from_a_tuple(tmp_path):
    X, y = np.random.default_rng(0).normal(size=(30, 3, 2, 2)), np.arange(30) % 3
    np.savez(tmp_path / "d.npz", X=X, y=y, site=np.array(["s", "t"] * 15))
    dataset = read(tmp_path / "d.npz", group="site")
    assert dataset.features.shape == X.shape
    assert dataset.features.dtype == np.float32
    assert (dataset.task.name, dataset.classes, dataset.group_names) == ("multiclass", ("0", "1", "2"), ("s", "t"))
    direct = read((X, y))
    assert np.array_equal(direct.features, dataset.features)
    assert np.array_equal(direct.target, y)


@pytest.mark.parametrize("y", [np.zeros((30, 2)), np.zeros((30, 1, 1)), np.zeros(29)])
def test_a_target_that_is_no_column_is_refused_and_not_cut(tmp_path, y):
    np.savez(tmp_path / "d.npz", X=np.zeros((30, 3)), y=y)
    assert f"array 'y' must have shape (30,), one value a row of X, got {y.shape}" in error(tmp_path / "d.npz")


def test_a_tuple_of_frame_and_target_is_a_table(frame):
    dataset = read((frame.drop("churn").to_pandas(), frame["churn"].to_numpy()))
    assert (dataset.target_name, dataset.classes) == ("y", ("no", "yes"))


def test_a_real_target_of_a_csv_keeps_double_precision(csv):
    values = [1 + i * 1e-12 for i in range(20)]
    dataset = read(csv("x,y\n" + "".join(f"{i / 3},{v!r}\n" for i, v in enumerate(values))), target="y")
    assert dataset.task.name == "real"
    assert dataset.target.tolist() == values


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([0, 1] * 4, "binary", 2),
        ([0.0, 1.0] * 20, "binary", 2),
        ([True, False] * 5, "binary", 2),
        ([1, 2, 3] * 10, "multiclass", 3),
        (list(range(10)) * 10, "multiclass", 10),
        (list(range(20)) * 20, "multiclass", 20),
        (list(range(15)) * 20, "multiclass", 15),
        (list(range(15)) * 13, "real", 0),
        (list(range(21)) * 100, "real", 0),
        (list(range(20)) * 5, "real", 0),
        (list(range(10)) * 2, "real", 0),
        ([0.5, 1.5] * 10, "real", 0),
        ([str(i % 30) + "x" for i in range(90)], "multiclass", 30),
    ],
)
def test_the_task_follows_the_target(values, task, classes):
    dataset = read({"x": list(range(len(values))), "y": values}, target="y")
    assert (dataset.task.name, len(dataset.classes)) == (task, classes)


def test_the_task_can_be_said_and_labels_sort_as_what_they_are():
    numbers = {"x": list(range(60)), "y": [10, 9, 2] * 20}
    assert read(numbers, target="y").classes == ("2", "9", "10")
    assert "3 classes" in read(numbers, target="y").notes[0]
    real = read(numbers, target="y", task="real")
    assert (real.task.name, real.target.dtype, real.notes) == ("real", np.float64, ())
    assert "'text'" not in error(table(), target="y", task="real")
    assert "holds text, so it is not real" in error(table(), target="y", task="real")
    assert "3 classes ('2', '9', '10')" in error(numbers, target="y", task="binary")
    assert "did you mean 'binary'" in error(numbers, target="y", task="binray")


def test_rows_without_target_are_left_out_with_a_note(csv):
    dataset = read(csv("x,y\n" + "1,a\n2,b\n" * 5 + "3,NA\n\n4,\n"), target="y")
    assert dataset.notes == ("3 rows without a target were left out",)
    assert len(dataset.target) == len(dataset.features) == 10


def test_a_column_whose_later_rows_are_of_another_type_is_read_right(csv):
    rows = "".join(f"{i},{'a' if i % 2 else 'b'}\n" for i in range(10_500)) + "0.5,a\n"
    assert read(csv("x,y\n" + rows), target="y").features["x"].tail(1).to_list() == [0.5]


def test_kinds_are_applied_and_dates_keep_their_format():
    raw = table(
        day=["24.12.2020", "25.12.2020", None, "31.12.2020"] * 5,
        code=[7, 8, 7, 9] * 5,
        size=["1.5", "n.k.", "2", "3"] * 5,
    )
    dataset = read(raw, target="y", columns={"day": "date", "code": "category", "size": "number"})
    assert dataset.options["columns"] == {"day": "date:%d.%m.%Y", "code": "category", "size": "number"}
    matrix = Encoder.fit(dataset.features).transform(dataset.features)
    names = Encoder.fit(dataset.features).names
    assert names == ("x", "day", "day is missing", "code = 7", "code = 8", "code = 9", "size", "size is missing")
    np.testing.assert_array_equal(matrix[:4, 1], [0, 1, np.nan, 7])
    np.testing.assert_array_equal(matrix[:4, 6], [1.5, np.nan, 2, 3])


def test_new_rows_are_read_as_the_training_rows_were(csv):
    raw = table(day=["01.02.2020", "13.02.2020"] * 10)
    dataset = read(raw, target="y", columns={"day": "date"})
    encoder = Encoder.fit(dataset.features)
    new, _ = read_features(csv("day,x,more\n02.02.2020,1,?\n"), dataset.options)
    np.testing.assert_array_equal(encoder.transform(new), [[1, 1]])


def test_the_embedded_data_is_the_election_study():
    dataset = embedded()
    assert (len(dataset.target), dataset.features.width, len(dataset.classes)) == (944, 9, 7)
    counts = dict(zip(dataset.classes, np.bincount(dataset.target).tolist(), strict=True))
    assert counts["independent"] == 37
    assert counts["strong democrat"] == 200
    assert dataset.options == {"embedded": "anes96"}
    with pytest.raises(InputError, match="did you mean 'anes96'"):
        embedded("anes")


# Bad input: what, where, what to do


def test_a_missing_file_suggests_the_nearest(csv):
    path = csv("a,b\n1,2\n", "customers.csv")
    assert error(path.with_name("custmers.csv"), target="b").endswith("does not exist; did you mean 'customers.csv'?")
    assert "there is no folder" in error(path.parent / "none" / "t.csv", target="b")


def test_a_folder_names_a_file_in_it(csv):
    path = csv("a,b\n1,2\n")
    csv("a,b\n1,2\n", "z.csv")
    assert re.search(r"is a folder: give a file in it, such as 't.csv'", error(path.parent, target="b"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npz"])
def test_an_empty_file_is_named(csv, name):
    assert f"{name} is empty" in error(csv("", name), target="b")


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (bytes(range(256)) * 9, "t.csv", "t.csv is not a table of text: byte 0 is zero"),
        ("a,b\n1,café\n".encode("latin-1"), "t.csv", "t.csv, line 2 is not UTF-8 text (byte 0xE9): save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "t.csv", "t.csv is UTF-16 text: save it as UTF-8"),
        ("a,b\n", "t.csv", "t.csv has a header and no rows"),
        ("\n\n", "t.csv", "only blank lines"),
        ("\na,b\n1,2\n", "t.csv", "line 1 is blank"),
        (b"junk" * 99, "t.parquet", "t.parquet is not a Parquet file"),
        (b"junk" * 99, "t.arrow", "t.arrow is not an Arrow file"),
        (b"junk" * 99, "t.npz", "t.npz is not an NPZ file: save it with np.savez"),
        (b"PK\x03\x04junk", "t.npz", "t.npz is not an NPZ file: save it with np.savez"),
        (b"junk", "t.xlsx", "unknown suffix '.xlsx': save it as one of .csv"),
    ],
)
def test_what_is_not_a_table_is_named(csv, content, name, says):
    assert says in error(csv(content, name), target="b")


def test_ragged_rows_are_named_by_line(csv):
    assert "line 3 has 2 values where the header has 3 columns" in error(csv("a,b,c\n1,2,3\n4,5\n6,7,8\n"), target="c")
    assert "line 4 has 4 values where the header has 3" in error(csv("a,b,c\n1,2,3\n4,5,6\n6,7,8,9\n"), target="c")


def test_a_blank_last_value_is_not_ragged(csv):
    assert read(csv('y,x\n"a,1",\nb,2\n' * 1 + "a,1\nb,2\n"), target="y").features["x"].null_count() == 1


def test_duplicate_column_names_are_counted(csv):
    assert "t.csv, line 1: columns 1 and 3 are both named 'a'" in error(csv("a,b,a\n1,2,3\n"), target="b")
    assert "columns 1 and 2 are both named 'a'" in error(pd.DataFrame([[1, 2]], columns=["a", "a"]), target="a")


@pytest.mark.parametrize("which", ["target", "group", "drop", "columns"])
def test_a_column_that_is_not_there_suggests_the_nearest(frame, which):
    options = {"target": "churn"}
    options[which] = {"target": "chrun", "group": "twon", "drop": ["incom"], "columns": {"agee": "number"}}[which]
    near = {"target": "churn", "group": "town", "drop": "income", "columns": "age"}[which]
    message = error(frame, **options)
    assert f"({which}); did you mean {near!r}?" in message
    assert "its columns are 'age', 'income', 'town', 'churn'" in message


def test_a_table_needs_a_target(csv):
    message = error(csv("a,b\n1,2\n"))
    assert message.endswith("t.csv: say which column to predict, --target NAME; its columns are 'a', 'b'")


def test_a_target_of_one_value_is_named(csv):
    message = error(csv("a,b\n1,no\n2,no\n"), target="b")
    assert "t.csv, column 'b' (the target) has one value, 'no', in all 2 rows" in message
    assert "has no values" in error({"a": [1, 2], "b": [None, None]}, target="b")


def test_an_infinite_target_is_named_by_row(csv):
    assert "column 'b' (the target), line 3 is infinite" in error(csv("a,b\n1,0.5\n2,inf\n3,1.5\n"), target="b")


def test_a_class_with_fewer_rows_than_folds_is_named():
    dataset = read({"x": list(range(22)), "y": ["a", "b"] * 10 + ["rare"] * 2}, target="y")
    check_folds(dataset, 2)
    with pytest.raises(InputError, match=r"column 'y': class 'rare' has 2 rows, fewer than the 5 folds: use --folds 2"):
        check_folds(dataset, 5)
    with pytest.raises(InputError, match="has 8 rows, too few for 5 folds: use --folds 4"):
        check_folds(read({"x": list(range(8)), "y": [i / 3 for i in range(8)]}, target="y"), 5)


def test_an_all_missing_column_is_named(csv):
    assert "column 'a b' has no values: use --drop 'a b'" in error(csv("x,a b,y\n1,,p\n2,,q\n"), target="y")
    assert read(csv("x,a b,y\n1,,p\n2,,q\n"), target="y", drop=["a b"]).features.columns == ["x"]


@pytest.mark.parametrize("large", [1e39, -1e300, np.inf])
def test_a_target_beyond_float32_is_refused_however_it_comes(large, csv):
    values = [0.5, 1.5, large, 2.5]
    says = "column 'b' (the target), {} is infinite or beyond float32 "
    text = "a,b\n" + "".join(f"{row},{value}\n" for row, value in enumerate(values))
    assert says.format("line 4") + f"({large})" in error(csv(text), target="b")
    for target in (values, list(map(str, values))):
        frame = pl.DataFrame({"a": range(4), "b": target})
        assert says.format("row 2") in error(frame, target="b")
        assert says.format("row 2") in error(frame, target="b", columns={"b": "number"})
    assert read(frame, target="b", columns={"b": "category"}).task.name == "multiclass"
    assert "column 'y' (the target), row 2 is infinite" in error((np.ones((4, 1)), np.array(values)))


def test_infinite_numbers_in_a_table_are_named_by_row(csv):
    assert "t.csv, column 'x', line 4 is infinite" in error(csv("x,y\n1.5,p\n2,q\n-inf,q\n"), target="y")
    assert "column 'z', row 5 is infinite" in error(
        table(z=[np.inf if i == 5 else 0.1 * i for i in range(20)]), target="y"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_arrays_that_are_not_finite_are_named_by_row_and_column(tmp_path, value):
    X = np.zeros((70_000, 2))
    X[69_000, 1] = value
    np.savez(tmp_path / "d.npz", X=X, y=np.arange(70_000) % 2)
    assert f"d.npz, array 'X' has {value} in row 69000, column 1" in error(tmp_path / "d.npz")


def test_bad_arrays_are_named(tmp_path):
    X, y = np.zeros((6, 2)), np.arange(6) % 2
    assert "'y' has no value (NaN) in row 2" in error((X, [0, 1, np.nan, 0, 1, 0.5]))
    assert "'y' must have shape (6,), one value a row of X, got (5,)" in error((X, y[:5]))
    assert "'X' must have shape (n, d), or (n, c, h, w) for images, got (6,)" in error((X[:, 0], y))
    assert "'X' must hold numbers, got <U1" in error((X.astype("<U1"), y))
    np.savez(tmp_path / "no.npz", images=X, y=y)
    assert "no.npz has no array 'X'; its arrays are 'images', 'y'" in error(tmp_path / "no.npz")
    np.savez(tmp_path / "pickled.npz", X=X, y=np.array([{}] * 6, dtype=object), allow_pickle=True)
    assert "pickled.npz, array 'y' holds pickled objects" in error(tmp_path / "pickled.npz")
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "one.npz is not an NPZ file but a single array" in error(tmp_path / "one.npz")
    assert "drop= and columns= are for tables" in error((X, y), drop=["a"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "a,a,y\n1,2,0\n", "{path}, line 1: columns 1 and 2 are both named 'a'; rename one of them"),
        ("t.csv", "a,y\n", "{path} has a header and no rows; save the table again"),
        ("t.tsv", "\n\n", "{path} is empty: it has only blank lines; save the table again"),
        ("t.npz", "PK", "{path} is not an NPZ file: save it with np.savez(path, X=..., y=...)"),
    ],
)
def test_what_a_reader_says_is_the_whole_message(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    assert error(path, target="y") == message.format(path=path)


def test_lists_of_different_lengths_are_no_array():
    ragged = [[1], [1, 2], [], [3]]
    assert error((ragged, [0, 1, 0, 1])) == "X must be an array: it holds lists of different lengths"
    assert "y must be an array" in error((pd.DataFrame({"a": [1, 2, 3, 4]}), ragged), target="y")


@pytest.mark.parametrize("form", [dict, pd.DataFrame])
def test_decimals_that_are_no_number_are_missing_and_infinite_ones_are_refused(form, capfd):
    cells = [Decimal("1.5"), Decimal("NaN"), Decimal("2"), Decimal("sNaN"), None, Decimal("2.5")]
    target = list("ababab")
    assert read(form({"a": cells, "y": target}), target="y").features["a"].to_list() == [1.5, None, 2, None, None, 2.5]
    cells[5] = Decimal("-Infinity")
    assert "column 'a', row 5 is infinite" in error(form({"a": cells, "y": target}), target="y")
    assert capfd.readouterr().err == ""  # polars prints a panic where it can't hold one


def test_many_texts_say_how_to_go_on():
    raw = table(name=[f"n{i}" for i in range(1200)])
    message = error(raw, target="y")
    assert "column 'name' holds 1,200 different texts such as 'n0' (row 0)" in message
    assert "use --drop name or --as name=category" in message
    features = read(raw, target="y", columns={"name": "category"}).features
    assert len(Encoder.fit(features).names) == 1 + 100 + 1


def test_dates_say_how_to_go_on(csv):
    message = error(csv("when,y\n" + "2020-01-01,a\n2020-01-02T10:00:00,b\n" * 3), target="y")
    assert "t.csv, column 'when' holds dates (line 2 has '2020-01-01')" in message
    assert "--drop when or --as when=date or --as when=category" in message
    native = pl.DataFrame(
        {"when": pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 1, 4), eager=True), "y": list("abab")}
    )
    assert "column 'when' holds dates or times (Date)" in error(native, target="y")
    assert read(native, target="y", columns={"when": "date"}).features["when"].dtype == pl.Datetime


def test_dates_that_read_two_ways_or_not_at_all_say_so():
    both = table(d=["01/02/2020", "03/04/2020"] * 4)
    assert "use --as d=date:%m/%d/%Y or --as d=date:%d/%m/%Y" in error(both, target="y", columns={"d": "date"})
    wrong = table(d=["2020-01-01", "2020-01-02"] * 60 + ["soon"] * 2)
    assert "column 'd', row 120 is no date: 'soon'" in error(wrong, target="y", columns={"d": "date"})


def test_mixed_types_name_row_and_value(csv):
    path = csv("age,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(30)) + "unknown,a\n")
    message = error(path, target="y")
    assert "t.csv, column 'age' mixes numbers with text: line 32 has 'unknown'" in message
    assert "--drop age or --as age=number or --as age=category" in message
    assert read(path, target="y", columns={"age": "number"}).features["age"].null_count() == 1
    mixed = pd.DataFrame({"age": [1, 2, 3, 4, 5, 6, 7, 8, 9, "x"], "y": list("ab" * 5)})
    assert "row 9 has 'x'" in error(mixed, target="y")


def test_a_mixed_target_names_row_and_value(csv):
    path = csv("x,price\n" + "".join(f"{i},{i}.5\n" for i in range(30)) + "1,free\n")
    assert "'price' (the target) mixes numbers with text: line 32 has 'free'" in error(path, target="price")
    dataset = read(path, target="price", columns={"price": "number"})
    assert (dataset.task.name, len(dataset.target)) == ("real", 30)


def test_what_columns_can_not_be_is_said(frame):
    assert "cannot be read as 'dat'; did you mean 'date'?" in error(frame, target="churn", columns={"age": "dat"})
    assert "cannot be dropped: it is the target" in error(frame, target="churn", drop=["churn"])
    assert "cannot be both the target and the group" in error(frame, target="churn", group="churn")
    assert "there is nothing to learn from" in error(frame, target="churn", drop=["age", "income", "town"])
    assert "column 'l' holds List(Int64)" in error(table(l=[[1]] * 20), target="y")
    assert "got int" in error(3, target="y")
    assert "'b' has 1 rows" in error({"a": [1, 2], "b": [1]}, target="b")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def of_a_huge_message(data: bytes) -> bytes:
    return b"\xff\xff\xff\xff\xff\xff\xff\x7f" + data[8:]


@pytest.mark.parametrize(
    ("write", "damage"), [("write_ipc", cut), ("write_ipc_stream", cut), ("write_ipc_stream", of_a_huge_message)]
)
def test_damaged_arrow_files_are_refused_and_whole_ones_read(tmp_path, frame, write, damage):
    path = tmp_path / "d.arrow"
    getattr(frame, write)(path)
    assert read(path, target="churn").features.equals(read(frame, target="churn").features)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="is not an Arrow file"):
        read(path, target="churn")


def wild(kind: pa.DataType, size: int = 1_409_286_144) -> pa.Array:
    """Three texts, of which the one in the middle is missing and its view damaged: it leads nowhere."""
    views = struct.pack("<i12s", 1, b"a") + struct.pack("<iiii", size, 0, 0, 0) + struct.pack("<i12s", 1, b"b")
    return pa.Array.from_buffers(kind, 3, [pa.py_buffer(b"\5"), pa.py_buffer(views)])


def test_a_damaged_view_under_a_missing_value_is_not_followed(tmp_path):
    path = tmp_path / "d.arrow"
    text, binary = wild(pa.string_view()), wild(pa.binary_view())
    offsets = pa.array([0, 1, 2, 3])
    columns = {
        "text": text,
        "negative": wild(pa.string_view(), -2_105_376_256),
        "coded": pa.DictionaryArray.from_arrays(pa.array([0, 2, 0]), text, safe=False),
        "binary": binary,
        "list": pa.ListArray.from_arrays(offsets.cast(pa.int32()), text),
        "large": pa.LargeListArray.from_arrays(offsets, text),
        "fixed": pa.FixedSizeListArray.from_arrays(text, 1),
        "struct": pa.StructArray.from_arrays([text], ["inside"]),
        "map": pa.MapArray.from_arrays(offsets.cast(pa.int32()), pa.array(["x", "y", "z"]), text),
    }
    whole = pa.table({name: pa.concat_arrays([column] * 4) for name, column in columns.items()})
    whole = whole.append_column("y", pa.array(list("aabb") * 3))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)
    raw, _ = load(path)
    for name in ("text", "negative"):
        assert raw[name].str.strip_chars().to_list() == ["a", None, "b"] * 4
    assert raw["binary"].to_list() == [b"a", None, b"b"] * 4
    dropped = ["binary", "list", "large", "fixed", "struct", "map"]
    assert read(path, target="y", drop=dropped).features.columns == ["text", "negative", "coded"]
    assert "column 'list' holds" in error(path, target="y", drop=["binary"])


@pytest.mark.parametrize("columns", [9_000, 30_000])
def test_a_header_may_be_of_any_length(columns, tmp_path):
    names = [f"column_{i}" for i in range(columns - 1)]
    path = tmp_path / "wide.csv"
    rows = "\n".join(",".join(["1"] * (columns - 1) + [label]) for label in "abab")
    path.write_text(",".join([*names, "y"]) + "\n" + rows + "\n")
    table, _ = load(path)
    assert table.columns == [*names, "y"]
    assert table.shape == (4, columns)


def test_a_file_without_an_end_of_its_first_line_is_not_read_to_the_end(csv, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_HEADER", 1 << 17)
    assert "t.csv, line 1 has no end within 131072 bytes" in error(csv("a," * (1 << 17)))


def test_a_column_name_that_no_reader_takes_is_said(csv):
    assert "t.csv, line 1 cannot be read: field larger than field limit" in error(csv("a" * 200_000 + ",y\n1,2\n"))


def _npz_with(path: Path, header: str, values: bytes, **options) -> Path:
    """An NPZ file with a sound y, and an X that has this header."""
    padded = header + " " * (-(len(header) + 11) % 64) + "\n"
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("X.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + values)
        buffer = io.BytesIO()
        np.save(buffer, np.arange(6) % 2)
        archive.writestr("y.npy", buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(-6, 2)", "is damaged: its header says the shape (-6, 2), and a length is at least 0"),
        ("(-6, -2)", "is damaged: its header says the shape (-6, -2), and a length is at least 0"),
        ("(6, 3)", "is damaged: its header says 144 bytes, and there are 96"),
        ("(6, 1)", "is damaged: its header says 48 bytes, and there are 96"),
        ("(99999999999, 99999999999)", "is damaged: its header says 79999999998400000000008 bytes, and there are 96"),
        ("6, 2", "is damaged: save the file again"),
    ],
)
def test_an_array_whose_header_lies_is_damaged(shape, message, tmp_path):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    path = _npz_with(tmp_path / "d.npz", header, np.arange(12.0).tobytes())
    assert error(path) == f"{path}, array 'X' {message}"


def test_an_array_expands_by_no_more_than_its_file_gives_reason_for(tmp_path, monkeypatch):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 100000), }"
    path = _npz_with(tmp_path / "d.npz", header, bytes(4 * 600_000), compression=zipfile.ZIP_DEFLATED)
    assert read(path).features.shape == (6, 100_000)
    monkeypatch.setattr(npz, "FREELY", 1 << 20)
    assert re.search(r"array 'X' takes 0\.0 GB in memory from 0\.0 MB in the file, more than 200 times", error(path))
    plain = _npz_with(tmp_path / "plain.npz", header, bytes(4 * 600_000))
    assert read(plain).features.shape == (6, 100_000)
    monkeypatch.setattr(npz, "available", lambda: 3_000_000)
    assert "array 'X' takes 0.0 GB in memory, more than half of the 0.0 GB that are free" in error(plain)


def test_a_binary_table_without_rows_is_refused(tmp_path):
    table(z=[1] * ROWS).head(0).write_parquet(tmp_path / "t.parquet")
    assert "t.parquet has no rows; save the table again" in error(tmp_path / "t.parquet", target="y")


def test_texts_of_numbers_have_a_decimal_point_only_where_one_is_needed():
    assert as_text(pl.Series([1.0, 2.0, None])).to_list() == ["1", "2", None]
    assert as_text(pl.Series([1.0, 2.4])).to_list() == ["1.0", "2.4"]
    assert as_text(pl.Series([1.0, 1.6])).to_list() == ["1.0", "1.6"]
