"""Each finding is planted and found with its number, and none is found in clean data."""

import json

import numpy as np
import polars as pl
import pytest

from lossworks.comparison.findings import Finding, examine
from lossworks.comparison.read.dataset import Dataset, read
from lossworks.comparison.read.encode import Encoder

ROWS = 900


def classes(rng: np.random.Generator, **more) -> dict:
    """Three overlapping but distinct classes in four columns, none of which tells the class alone."""
    target = np.arange(ROWS) % 3
    centres = np.array([[2, 2, 0, 0], [2, -2, 2, 0], [-2, 0, 0, 2]]) * 1.2
    X = centres[target] + rng.normal(size=(ROWS, 4))
    return {**{f"x{i}": X[:, i] for i in range(4)}, "y": np.array(["a", "b", "c"])[target], **more}


def values(rng: np.random.Generator) -> dict:
    X = rng.normal(size=(ROWS, 4))
    return {**{f"x{i}": X[:, i] for i in range(4)}, "y": X @ [1.0, 1.0, 1.0, 0.5] + rng.normal(size=ROWS)}


def look(dataset: Dataset, seed: int = 0) -> dict[str, Finding]:
    matrix = Encoder.fit(dataset.features).transform(dataset.features)
    found = examine(dataset, matrix, seed=seed)
    json.dumps([finding.numbers for finding in found])
    assert all("\n" not in finding.text for finding in found)
    return {finding.key: finding for finding in found}


def findings(columns: dict, **options) -> dict[str, Finding]:
    return look(read(pl.DataFrame(columns), target="y", **options))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_clean_classes_have_no_findings(rng):
    assert findings(classes(rng)) == {}


def test_few_rows_that_a_tree_sees_all_of_are_looked_at():
    for seed in range(40):  # one tree in five of them draws all four
        look(read({"a": [1.0, 2.0, 3.0, 4.0] * 3, "y": [*"abab", *[None] * 8]}, target="y"), seed)


def test_values_whose_sum_float32_has_no_room_for_are_looked_at(rng):
    columns = classes(rng)
    columns["x0"] = np.abs(columns["x0"]) * 5e37
    look(read(pl.DataFrame(columns), target="y"))  # a warning is an error here


def test_clean_real_values_have_no_findings(rng):
    assert findings(values(rng)) == {}


def test_imbalance(rng):
    columns = pl.DataFrame(classes(rng))
    kept = columns.filter((pl.col("y") != "c") | (pl.int_range(pl.len()) < 90))
    found = look(read(kept, target="y"))["imbalance"]
    assert found.numbers == {
        "ratio": 10.0,
        "rarest": "c",
        "rarest_count": 30,
        "commonest": "a",
        "commonest_count": 300,
    }
    assert found.helps == ("imbalance",)
    assert "10.0 times the 30 of the rarest, 'c'" in found.text


def test_slight_imbalance_is_told_and_calls_for_nothing(rng):
    columns = pl.DataFrame(classes(rng)).filter((pl.col("y") != "c") | (pl.int_range(pl.len()) < 450))
    found = look(read(columns, target="y"))["imbalance"]
    assert (found.numbers["ratio"], found.helps, found.level) == (2.0, (), "info")


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_flipped_labels_are_counted(rng, rate):
    columns = classes(rng)
    flipped = rng.random(ROWS) < rate
    columns["y"] = np.where(
        flipped, np.array(["a", "b", "c"])[(np.arange(ROWS) + rng.integers(1, 3, ROWS)) % 3], columns["y"]
    )
    found = findings(columns)["label noise"]
    assert found.helps == ("noisy labels",)
    assert found.numbers["share"] == pytest.approx(flipped.mean(), abs=0.06)
    assert f"({found.numbers['contradicted']:,} of {ROWS} rows" in found.text


def test_the_direction_of_a_flip_is_named(rng):
    columns = classes(rng)
    draw = rng.random(ROWS)
    wrong = draw < np.where(columns["y"] == "a", 0.25, 0.05)
    columns["y"] = np.where(wrong, np.array(["b", "c", "a"])[np.arange(ROWS) % 3], columns["y"])
    found = findings(columns)["label noise"]
    assert (found.numbers["given"], found.numbers["expected"]) == ("b", "a")


def test_overlapping_classes_blame_few_rows(rng):
    X = rng.normal(size=(2000, 3))
    y = rng.random(2000) < 1 / (1 + np.exp(3 - X[:, 0]))
    assert "label noise" not in look(read((X, y)))


def test_many_classes(rng):
    y = np.repeat(np.arange(60), 12)
    found = look(read((rng.normal(size=(720, 3)), y), task="multiclass"))["many classes"]
    assert (found.numbers, found.helps) == ({"classes": 60}, ("many classes", "top-k"))


def test_outliers_of_a_real_target(rng):
    columns = values(rng)
    columns["y"][:9] = 1000
    found = findings(columns)["outliers"]
    assert (found.numbers["count"], found.numbers["furthest"], found.helps) == (9, 1000, ("outliers",))
    assert "9 values of 'y' (1 %) lie more" in found.text


def test_one_outlier_is_one_value(rng):
    columns = {name: column[:100] for name, column in values(rng).items()}
    columns["y"][0] = 1000
    assert "1 value of 'y' (1 %) lies more" in findings(columns)["outliers"].text


def test_heavy_tails_of_a_real_target(rng):
    columns = values(rng) | {"y": rng.standard_t(2, size=ROWS)}
    found = findings(columns)["heavy tails"]
    low, q1, q3, high = np.quantile(columns["y"], [0.025, 0.25, 0.75, 0.975])
    assert found.numbers["ratio"] == pytest.approx((high - low) / (q3 - q1))
    assert found.helps == ("heavy tails",)


def test_a_spike_of_a_real_target(rng):
    columns = values(rng)
    columns["y"] = np.where(np.arange(ROWS) % 10 < 8, 0.0, columns["y"])
    found = findings(columns)
    assert found["spike"].numbers == {"share": 0.8, "value": 0.0}
    assert "heavy tails" not in found


def test_missing_values(rng):
    x = classes(rng)["x0"]
    found = findings(classes(rng, x0=[None if i % 4 == 0 else v for i, v in enumerate(x)]))["missing values"]
    assert found.numbers == {"share": 0.0625, "columns": {"x0": 0.25}}
    assert "in 1 of 4 columns; most in 'x0' (25 %)" in found.text


def test_constant_and_duplicate_columns(rng):
    columns = classes(rng, one=[1] * ROWS, two=["t"] * ROWS)
    columns["twin"] = columns["x1"]
    columns["nearly"] = columns["x1"].copy()
    columns["nearly"][-1] += 1
    found = findings(columns)
    assert found["constant columns"].numbers == {"columns": ["one", "two"]}
    assert found["duplicate columns"].numbers == {"columns": {"twin": "x1"}}
    assert "'twin' equals 'x1'" in found["duplicate columns"].text


def test_columns_that_name_the_row(rng):
    found = findings(
        classes(rng, id=rng.permutation(ROWS), key=[f"k{i}" for i in range(ROWS)], age=np.arange(ROWS) // 9)
    )
    assert found["near-unique columns"].numbers == {"columns": {"id": 1.0, "key": 1.0}}


def test_equal_rows_with_different_targets(rng):
    for arrays in (False, True):
        columns = pl.DataFrame(classes(rng))
        twins = columns.head(30).with_columns(y=pl.col("y").replace({"a": "b", "b": "c", "c": "a"}))
        both = pl.concat([columns, twins])
        dataset = read(
            (both.drop("y").to_numpy(), both["y"].to_numpy()) if arrays else both, target=None if arrays else "y"
        )
        found = look(dataset)
        assert found["conflicting rows"].numbers == {"rows": 60, "sets": 30, "share": 60 / 930}
        assert found["conflicting rows"].helps == ("noisy labels",)
        assert "repeated rows" not in found


def test_repeated_rows(rng):
    columns = pl.DataFrame(values(rng))
    found = look(read(pl.concat([columns, columns.head(20), columns.head(5)]), target="y"))
    assert found["repeated rows"].numbers["rows"] == 25
    assert "conflicting rows" not in found


@pytest.mark.parametrize("text", [False, True])
def test_a_column_that_tells_the_class_is_a_warning(rng, text):
    columns = classes(rng)
    codes = {"a": 5, "b": 1, "c": 3}
    columns["told"] = [f"t{codes[y]}" if text else codes[y] for y in columns["y"]]
    found = findings(columns)["leaking columns"]
    assert (found.level, found.numbers["columns"]) == ("warning", {"told": 1.0})
    assert found.text.startswith("Column 'told' alone tells the target almost exactly")


def test_a_column_that_tells_a_real_target_is_a_warning_however_it_is_bent(rng):
    columns = values(rng)
    columns["bent"] = np.exp(2 * columns["y"])
    assert list(findings(columns)["leaking columns"].numbers["columns"]) == ["bent"]


def test_a_rare_class_does_not_fake_a_leak(rng):
    columns = values(rng) | {"y": np.where(np.arange(ROWS) % 100 == 0, "rare", "common")}
    assert "leaking columns" not in findings(columns)


def test_small_groups(rng):
    site = np.where(np.arange(ROWS) < 12, "far", np.where(np.arange(ROWS) % 2, "east", "west"))
    found = findings(classes(rng, site=site), group="site")["small groups"]
    assert found.numbers == {"groups": 3, "smallest": "far", "rows": 12}
    even = np.where(np.arange(ROWS) % 2, "east", "west")
    assert findings(classes(rng, site=even), group="site") == {}


def test_few_rows_for_many_columns(rng):
    found = look(read((rng.normal(size=(100, 40)), rng.normal(size=100))))["few rows"]
    assert (found.numbers, found.helps) == ({"rows": 100, "columns": 40}, ("overfitting",))


def test_warnings_come_first_and_the_same_seed_says_the_same(rng):
    columns = classes(rng, one=[1] * ROWS)
    columns["told"] = columns["y"]
    dataset = read(pl.DataFrame(columns), target="y")
    matrix = Encoder.fit(dataset.features).transform(dataset.features)
    first = examine(dataset, matrix, seed=3)
    assert first == examine(dataset, matrix, seed=3)
    assert [finding.level for finding in first] == ["warning", "info"]


def test_images_have_no_columns_to_speak_of(rng):
    target = np.arange(ROWS) % 2
    images = rng.normal(size=(ROWS, 1, 4, 4)) + target[:, None, None, None]
    images[:, 0, 0, 0] = 0
    assert look(read((images, target))) == {}
