"""The encoder: exact values, a JSON round trip that changes nothing, and clear words on tables that do not fit."""

import json
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from lossworks.checks import InputError
from lossworks.comparison.read.dataset import read_features
from lossworks.comparison.read.encode import Encoder

NAN = np.nan


@pytest.fixture
def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "age": [30, None, 50, 40],
            "score": [0.5, 1.5, NAN, 2.5],
            "member": [True, False, None, True],
            "town": ["Ulm", "Bonn", None, "Ulm"],
            "since": [date(2020, 1, 3), date(2020, 1, 1), date(2020, 1, 2), None],
            "same": [7, 7, 7, 7],
            "half": [None, 1.0, 1.0, 1.0],
        }
    )


def test_every_kind_of_column_becomes_the_numbers_it_should(frame):
    encoder = Encoder.fit(frame)
    expected = {
        "age": [30, NAN, 50, 40],
        "age is missing": [0, 1, 0, 0],
        "score": [0.5, 1.5, NAN, 2.5],
        "score is missing": [0, 0, 1, 0],
        "member": [1, 0, NAN, 1],
        "member is missing": [0, 0, 1, 0],
        "town = Bonn": [0, 1, 0, 0],
        "town = Ulm": [1, 0, 0, 1],
        "town is missing": [0, 0, 1, 0],
        "since": [2, 0, 1, NAN],
        "since is missing": [0, 0, 0, 1],
        "half is missing": [1, 0, 0, 0],
    }
    assert encoder.names == tuple(expected)
    matrix = encoder.transform(frame)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.array(list(expected.values()), dtype=np.float32).T)


def test_the_json_round_trip_is_exact(frame):
    awkward = frame.with_columns(
        pl.Series("since", [datetime(2020, 1, 1, 3, 7, 11, 123457)] * 3 + [datetime(2021, 5, 6)])
    )
    for features in (frame, awkward, np.zeros((5, 2, 3, 3), dtype=np.float32)):
        encoder = Encoder.fit(features)
        again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
        assert again == encoder
        np.testing.assert_array_equal(again.transform(features), encoder.transform(features))


def test_unseen_texts_are_zero_or_other_and_order_and_more_columns_do_not_matter(frame):
    encoder = Encoder.fit(frame)
    new = frame.with_columns(pl.Series("town", ["Köln", "Ulm", "", None]), extra=pl.lit(1)).select(
        reversed(frame.columns)
    )
    towns = encoder.transform(new)[:, 6:9]
    np.testing.assert_array_equal(towns, [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])

    many = pl.DataFrame({"t": [f"n{i % 150:03}" for i in range(300)] + [f"n{i:03}" for i in range(100)]})
    encoder = Encoder.fit(many)
    assert encoder.names == (*(f"t = n{i:03}" for i in range(100)), "t = (other)")
    rows = encoder.transform(pl.DataFrame({"t": ["n000", "n149", "new"]}))
    assert rows.argmax(axis=1).tolist() == [0, 100, 100]
    assert rows.sum() == 3


def test_the_same_values_in_other_types_encode_the_same(frame):
    encoder = Encoder.fit(frame.select("age", "member", "town"))
    as_text = pl.DataFrame({"age": ["30", None, "50", "40"], "member": ["true", "False", None, "1"]})
    new = as_text.with_columns(frame["town"].cast(pl.Categorical))
    np.testing.assert_array_equal(encoder.transform(new), encoder.transform(frame))
    codes = Encoder.fit(pl.DataFrame({"code": ["7", "8"]}))
    np.testing.assert_array_equal(codes.transform(pl.DataFrame({"code": [8.0, 7.0, None]})), [[0, 1], [1, 0], [0, 0]])


def test_missing_columns_are_all_named(frame):
    with pytest.raises(InputError, match=r"lacks the columns 'age', 'town'"):
        Encoder.fit(frame).transform(frame.drop("age", "town", "same"))
    with pytest.raises(InputError, match=r"lacks the column 'age'; did you mean 'Age'\?"):
        Encoder.fit(frame).transform(frame.rename({"age": "Age"}))


def test_values_that_do_not_fit_name_column_row_and_value(frame):
    encoder = Encoder.fit(frame)
    with pytest.raises(InputError, match="column 'age' held numbers in training and row 2 has 'old'"):
        encoder.transform(frame.with_columns(age=pl.Series(["1", "2", "old", None])))
    with pytest.raises(InputError, match="column 'score', row 1 is infinite"):
        encoder.transform(frame.with_columns(score=pl.Series([1.0, np.inf, 2.0, 3.0])))
    with pytest.raises(InputError, match="column 'since' held dates in training and holds Int64"):
        encoder.transform(frame.with_columns(since=pl.lit(3, pl.Int64)))


def test_what_does_not_fit_names_the_file_and_the_line(frame, tmp_path):
    encoder, path = Encoder.fit(frame.select("age", "score")), tmp_path / "new.csv"

    def says(text: str) -> str:
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            encoder.transform(*read_features(path))
        return str(caught.value)

    assert says("age,score\n1,2\nold,3\n") == (
        f"{path}, column 'age' held numbers in training and line 3 has 'old': correct it, or leave it empty"
    )
    assert says("age,score\n1,2\n1,1e39\n").startswith(f"{path}, column 'score', line 3 is infinite or beyond")
    assert says("age\n1\n") == f"{path} lacks the column 'score'"


def test_arrays_pass_through_with_a_check_of_their_shape():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    encoder = Encoder.fit(images)
    out = encoder.transform(images)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, images)
    assert len(encoder.names) == 12
    with pytest.raises(InputError, match=r"shape \(n, 3, 2, 2\) is needed, got \(2, 12\)"):
        encoder.transform(images.reshape(2, 12))
    with pytest.raises(InputError, match="got a table of 1 columns"):
        encoder.transform(pl.DataFrame({"x": [1]}))


def test_a_table_that_never_varies_is_refused():
    with pytest.raises(InputError, match="none of the columns 'a', 'b' varies"):
        Encoder.fit(pl.DataFrame({"a": [1, 1], "b": ["x", "x"]}))
