"""Run folders that were valid once, journals likewise, and new rows of any kind for a model that is whole."""

import copy
import json
import shutil
import sqlite3
import struct

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
import torch
from fuzzing import ACCEPTED, REFUSED, check_error, seeds
from test_readers import edits, frame_of, spoiled, tables, valid

import lossworks as lw
from lossworks.comparison import Encoder, InputError, Model
from lossworks.comparison.handover.model import spreadsheet_safe, write_csv
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.read.dataset import read
from lossworks.comparison.replica import check_replicas
from lossworks.comparison.tasks.known import find_task
from lossworks.roles import BINARY, CLASSES, REAL
from lossworks.runs.files import parse_json
from lossworks.runs.journal import Journal, read_results

FRAME = frame_of(1, 40)
WHAT = ("binary", "multiclass", "real", "array", "image")


def model_of(what):
    """A model as a run hands it over, untrained."""
    torch.manual_seed(0)
    if what in ("array", "image"):
        features = np.random.default_rng(0).normal(size=(20, 1, 4, 4) if what == "image" else (20, 3)).astype("f4")
        task, classes, columns = "binary", ("no", "yes"), {}
    else:
        dataset = read(
            FRAME.with_columns(y=pl.col("y") % 2 if what == "binary" else pl.col("y")),
            target="y",
            columns={"d": "date"},
        )
        features, columns = dataset.features, dataset.options["columns"]
        task = {"binary": "binary", "multiclass": "multiclass", "real": "real"}[what]
        classes = {"binary": ("no", "yes"), "multiclass": ("0", "1", "=2"), "real": ()}[what]
    encoder = Encoder.fit(features)
    kind = {"binary": BINARY, "real": REAL}.get(task, CLASSES)
    name = "cnn" if what == "image" else "mlp" if what == "multiclass" else "linear"
    outputs = kind.outputs(len(classes))
    architecture = Architecture(name, width=4, scaling="standard" if what in ("array", "image") else "robust")
    architecture = architecture.sized(encoder.width, outputs, kind)
    network = architecture.empty_module(find_task(task).empty_head(kind, outputs)).eval()
    return Model(find_task(task), "y", classes, "SomeLoss", "default", 1.5, encoder, architecture, network, columns)


MODELS = {what: model_of(what) for what in WHAT}
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from(
        [10**12, -(10**30), 1e308, float("nan"), float("inf"), "", "mlp", "cnn", "linear", "factory", "../../x"]
    ),
    st.text(max_size=4),
    st.sampled_from(
        ["binary", "classes", "real", "multiclass", "robust", "standard", "number", "date", "category", "date:%d"]
    ),
    st.lists(st.integers(-1, 4), max_size=4),
    st.sampled_from([[], {}, [[]], {"a": 1}, [None], ["a", "a"], ["a", "b"]]),
)


def paths_of(value, path=()):
    """Where the leaves and branches of a piece of JSON are."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths_of(inner, (*path, key))
    return found


def edited(described, changes):
    """The JSON with something else in some of its places."""
    described = json.loads(json.dumps(described))
    for where, how, shared in changes:
        value = copy.deepcopy(shared)
        paths = [path for path in paths_of(described) if path]
        if not paths:
            break
        *above, last = paths[where % len(paths)]
        place = described
        for key in above:
            place = place[key]
        if how == "set":
            place[last] = value
        elif how == "remove":
            del place[last]
        elif isinstance(place, dict):
            place[str(value)] = place[last]
        else:
            place.append(value)
    return described


changes = st.lists(st.tuples(seeds, st.sampled_from(["set", "set", "set", "remove", "add"]), anything), max_size=3)


def tensors_edited(data, edits_):
    """The safetensors file with another header over the same bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(edited(json.loads(data[8 : 8 + size]), edits_)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def rows_for(what):
    if what in ("array", "image"):
        return np.zeros((3, *MODELS[what].encoder.shape))
    return FRAME.head(3)


def loads(folder, what):
    """What becomes of a load, and of three rows for what was loaded."""
    try:
        model = lw.load(folder)
    except InputError as error:
        check_error(error)
        return REFUSED
    try:
        frame = model.frame(rows_for(what))
    except InputError as error:
        check_error(error)
        return REFUSED
    assert frame.height == 3
    return ACCEPTED


@pytest.mark.parametrize("what", WHAT)
def test_load_model(what, fuzz, tmp_path):
    MODELS[what].save(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("model.json", "model.safetensors")}
    described = json.loads(files["model.json"])

    def check(given):
        how, json_changes, tensor_changes, byte_edits = given
        contents = dict(files)
        if how == "fields":
            contents["model.json"] = json.dumps(edited(described, json_changes)).encode()
        elif how == "header":
            contents["model.safetensors"] = tensors_edited(files["model.safetensors"], tensor_changes)
        else:
            contents[how] = spoiled(files[how], byte_edits)
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
        return loads(tmp_path, what)

    how = st.sampled_from(["fields", "fields", "header", "model.json", "model.safetensors"])
    fuzz(st.tuples(how, changes, changes, edits), check)


@pytest.mark.parametrize("what", WHAT)
def test_predict(what, fuzz, tmp_path):
    model = MODELS[what]
    names = [column.name for column in model.encoder.columns]
    path = tmp_path / "new.csv"

    @st.composite
    def fitting(draw):
        """Rows like those of the training, some of their columns spoiled."""
        rows = draw(st.sampled_from([0, 1, 3]))
        frame = FRAME.head(rows)
        for name in draw(st.lists(st.sampled_from(names or ["a"]), max_size=2)):
            kind = draw(st.sampled_from(["drop", "text", "huge", "null", "bool", "date", "list", "number text"]))
            if kind == "drop":
                frame = frame.drop(name, strict=False)
                continue
            value = {"text": "x", "huge": 1e300, "null": None, "bool": True, "list": [1], "number text": " 12 "}.get(
                kind
            )
            literal = pl.lit(pl.Series([value] * rows)) if kind != "date" else pl.lit("2024-01-01").str.to_date()
            frame = frame.with_columns(literal.alias(name))
        return frame

    def check(data):
        if isinstance(data, bytes):
            path.write_bytes(data)
            data = path
        try:
            frame = model.frame(data)
        except InputError as error:
            check_error(error)
            return REFUSED
        assert frame.columns[0] == "predicted_y"
        write_csv(frame)
        return ACCEPTED

    files = [valid(".csv", seed) for seed in range(12)]
    spoiled_files = st.builds(spoiled, st.sampled_from(files), edits)
    arrays = st.builds(
        lambda shape, dtype, seed: np.random.default_rng(seed).normal(size=shape).astype(dtype),
        st.sampled_from([(3, 3), (0, 3), (2, 1, 4, 4), (2, 3, 4, 4), (3,), (2, 4)]),
        st.sampled_from(["f4", "f8", "i8", "?", "c8"]),
        seeds,
    )
    own = arrays if what in ("array", "image") else fitting()
    fuzz(st.one_of(own, own, tables(), spoiled_files), check)


REPLICA = {"objective": "a", "setting": "default", "setting_number": 0, "fold": 0, "repeat": 0, "dropped": False}
REPLICA |= {"inner_score": 0.5, "metrics": {"accuracy": 0.5}, "curve": [[10, 0.5]], "best_step": 10, "temperature": 1.0}
REPLICA |= {"robustness": [[0.0, 0.5], [0.1, 0.25]]}


def opened(path):
    """What becomes of a journal that is opened, read and written to."""
    journal = None
    try:
        journal = Journal(path, "plan")
        done = journal.done()
        assert all(isinstance(number, int) for number in done)
        check_replicas(journal.results(), path)
        journal.add(99, [REPLICA])
    except InputError as error:
        check_error(error)
        return REFUSED
    finally:
        if journal is not None:
            journal.close()
    return ACCEPTED


def test_journal_file(fuzz, tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, "plan")
    for number in range(5):
        journal.add(number, [REPLICA] * 3)
    journal.close()
    data = path.read_bytes()

    def check(edits_):
        for leftover in tmp_path.iterdir():
            leftover.unlink(missing_ok=True)
        path.write_bytes(spoiled(data, edits_))
        return opened(path)

    fuzz(edits, check)


def test_journal_rows(fuzz, tmp_path):
    path, kept = tmp_path / "journal.sqlite", tmp_path / "kept.sqlite"
    journal = Journal(kept, "plan")
    journal.add(0, [REPLICA])
    journal.close()
    texts = st.one_of(
        changes.map(lambda given: json.dumps(edited([REPLICA], given))),
        st.text(max_size=20),
        st.sampled_from(["[" * 5000, "[]", "null", "[NaN]", "1e999", "9" * 5000]),
        st.none() | st.binary(max_size=5) | st.integers(-5, 5) | st.floats(allow_nan=False),
    )
    statements = st.sampled_from(
        [
            "UPDATE groups SET result = ?",
            "UPDATE meta SET value = ?",
            "UPDATE groups SET number = ?",
            "UPDATE meta SET key = ?",
        ]
    )

    def check(given):
        statement, value = given
        for leftover in tmp_path.glob("journal.sqlite*"):
            leftover.unlink(missing_ok=True)
        shutil.copy(kept, path)
        store = sqlite3.connect(path)
        try:
            with store:
                store.execute(statement, (value,))
        except (sqlite3.Error, UnicodeEncodeError):
            return REFUSED
        finally:
            store.close()
        return opened(path)

    fuzz(st.tuples(statements, texts), check)


def test_results_as_text(fuzz):
    def check(given):
        text, changes_ = given
        try:
            replicas = read_results(json.dumps(edited([REPLICA, REPLICA], changes_)) if text is None else text)
            check_replicas(replicas, "here")
            parse_json(json.dumps(replicas), nan=True)
        except ValueError as error:
            check_error(error)
            return REFUSED
        return ACCEPTED

    fuzz(st.tuples(st.none() | st.text(max_size=30), changes), check)


def test_spreadsheet_safe(fuzz):
    starts = st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", " ", "'", '"', ";", ""])
    texts = st.builds(str.__add__, starts, st.text(max_size=6)).filter(
        lambda text: text.isascii() or text.isprintable()
    )

    def check(given):
        names, cells = given
        frame = pl.DataFrame(dict.fromkeys(names, cells))
        safe = spreadsheet_safe(frame)
        assert len(set(safe.columns)) == len(names)
        for cell in (*safe.columns, *(safe.to_series(0).to_list() if names else ())):
            bare = cell.lstrip()
            assert not bare.startswith(("=", "@", "\uff1d")), cell
            assert not bare.startswith(("+", "-")) or _is_number(bare), cell
        assert write_csv(frame) is not None
        return REFUSED if safe.rows() == frame.rows() else ACCEPTED

    fuzz(st.tuples(st.lists(texts, max_size=3, unique=True), st.lists(texts, max_size=4)), check)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
