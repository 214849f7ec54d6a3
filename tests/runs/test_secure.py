"""Nobody gets in: what a run folder holds, what is refused when one is read, and what hostile names can do."""

import ast
import csv
import io
import json
import os
import pickle
import pickletools
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import lossworks as lw
from lossworks.comparison import InputError, Training
from lossworks.comparison.handover.model import spreadsheet_safe, write_csv
from lossworks.losses import CrossEntropyLoss, FocalLoss
from lossworks.runs.files import parse_json, whole
from lossworks.runs.journal import Journal

ROWS = 60
QUICK = {"folds": 2, "repeats": 1, "model": "linear", "training": Training(16, 20, 10)}
HOSTILE = [
    '"""\nimport os; os.environ["OWNED"] = "1"\n"""',
    "'); __import__('os').environ.update(OWNED='1'); ('",
    "{plan.seed} {0} {{x}} {__import__}",
    "back\\slash \\x22\\N{QUOTATION MARK} \\",
    "line\u2028separator\u2029and\x85next\rreturn\x00nul",
    "<script>document.title='owned'</script>",
    "%s %(seed)s $(touch owned) `touch owned`",
    "../../escape",
]


def table(columns=("a", "b"), target="label", classes=("no", "yes")):
    random = np.random.default_rng(0)
    data = {name: random.normal(size=ROWS) for name in columns}
    first = next(iter(data.values()))
    return pl.DataFrame({**data, target: [classes[int(value > 0)] for value in first]})


def quick(data, target, objectives=(), **options):
    return lw.compare(data, target, objectives=objectives, **{**QUICK, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    quick(table(), "label", out=folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in finished.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


# No pickle


def unpickles(data: bytes) -> bool:
    """Whether the bytes are a pickle with at least one object in it."""
    try:
        found = list(pickletools.genops(io.BytesIO(data)))
    except Exception:
        return False
    return len(found) > 1 and found[-1][0].name == "STOP"


def test_the_search_for_pickles_finds_them():
    assert all(unpickles(pickle.dumps({"a": 1}, protocol)) for protocol in range(6))
    assert not unpickles(b"PAR1 and so on")


@pytest.mark.parametrize("kind", ["frame", "arrays", "text labels"])
def test_no_file_of_a_run_folder_is_or_holds_a_pickle(kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    labels = np.where(x[:, 0] > 0, "yes", "no")
    data = {"frame": table(), "arrays": (x, (labels == "yes") * 1), "text labels": (x, labels.astype(object))}[kind]
    quick(data, "label" if kind == "frame" else None, out=tmp_path / "run")
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert len(files) == 8
    for name, data in files.items():
        assert not unpickles(data), name
        assert zipfile.is_zipfile(io.BytesIO(data)) == name.endswith(".npz"), name
        if name.endswith(".npz"):
            arrays = np.load(io.BytesIO(data), allow_pickle=False)
            assert {array.dtype.hasobject for array in arrays.values()} == {False}
            assert set(arrays.files) == {"X", "y"}
        if name.endswith(".parquet"):
            metadata = pq.read_metadata(io.BytesIO(data)).metadata or {}
            assert not any(b"python" in key or b"pandas" in key or b"pickle" in key for key in metadata)
        if name.endswith(".sqlite"):
            store = sqlite3.connect(tmp_path / "run" / name)
            tables = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            values = [value for t in tables for row in store.execute(f"SELECT * FROM {t}") for value in row]
            store.close()
            assert {type(value) for value in values} <= {str, int}


# What is refused


def describe(folder: Path, change) -> None:
    path = folder / "model.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


def state(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def first_weight(tensors):
    return next(name for name, tensor in tensors.items() if tensor.ndim == 2)


def column(described):
    return described["encoder"]["columns"][0]


DAMAGES = {
    "an unknown field": lambda f: describe(f, lambda d: d.update(hook="os.system")),
    "a field gone": lambda f: describe(f, lambda d: d.pop("classes")),
    "an unknown field of the architecture": lambda f: describe(f, lambda d: d["architecture"].update(path="x")),
    "an unknown field of a column": lambda f: describe(f, lambda d: column(d).update(code="x")),
    "an unknown field of the encoder": lambda f: describe(f, lambda d: d["encoder"].update(code="x")),
    "a factory": lambda f: describe(f, lambda d: d["architecture"].update(model="factory")),
    "a factory's file": lambda f: describe(f, lambda d: d["architecture"].update(model="evil.py:model")),
    "a list for a model": lambda f: describe(f, lambda d: d["architecture"].update(model=["mlp"])),
    "a huge width": lambda f: describe(f, lambda d: d["architecture"].update(model="mlp", width=10**12)),
    "a huge input": lambda f: describe(f, lambda d: d["architecture"].update(input_shape=[10**15])),
    "a negative input": lambda f: describe(f, lambda d: d["architecture"].update(input_shape=[-1])),
    "a float for an int": lambda f: describe(f, lambda d: d["architecture"].update(outputs=2.0)),
    "true for an int": lambda f: describe(f, lambda d: d.update(version=True)),
    "a kind of column": lambda f: describe(f, lambda d: column(d).update(kind="pickle")),
    "a column's name twice": lambda f: describe(f, lambda d: d["encoder"].update(columns=[column(d)] * 2)),
    "labels of a number": lambda f: describe(f, lambda d: column(d).update(labels=["a"])),
    "labels that are numbers": lambda f: describe(f, lambda d: column(d).update(kind="category", labels=[1])),
    "classes that are numbers": lambda f: describe(f, lambda d: d.update(classes=[0, 1])),
    "a way to read": lambda f: describe(f, lambda d: d.update(columns={"a": "eval"})),
    "a way to read that is none": lambda f: describe(f, lambda d: d.update(columns={"a": 3})),
    "no temperature": lambda f: describe(f, lambda d: d.update(temperature=0.0)),
    "NaN": lambda f: describe(f, lambda d: d.update(temperature=float("nan"))),
    "infinity": lambda f: describe(f, lambda d: column(d).update(origin=float("inf"))),
    "a name twice": lambda f: (f / "model.json").write_text('{"version": 1, "version": 1}'),
    "deep": lambda f: (f / "model.json").write_text("[" * 100_000),
    "a huge number": lambda f: (f / "model.json").write_text('{"version": ' + "9" * 10_000 + "}"),
    "line breaks": lambda f: describe(f, lambda d: d.update({"a\nb\x1b[31m": 1})),
    "a long name": lambda f: describe(f, lambda d: d.update({"a" * 10**6: 1})),
    "a wrong shape": lambda f: state(f, lambda t: t.update({first_weight(t): torch.zeros(1, 1)})),
    "a wrong dtype": lambda f: state(f, lambda t: t.update({first_weight(t): t[first_weight(t)].double()})),
    "a tensor more": lambda f: state(f, lambda t: t.update(more=torch.zeros(1))),
    "a tensor less": lambda f: state(f, lambda t: t.pop(first_weight(t))),
    "a pickle": lambda f: torch.save({"a": torch.zeros(1)}, f / "model.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_folder_that_no_run_wrote_is_refused_in_one_line(damage, run):
    damage(run)
    with pytest.raises(InputError) as caught:
        lw.load(run)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000


def test_a_factory_for_a_model_that_has_none_is_refused(run):
    with pytest.raises(InputError, match=r"is 'linear', of no factory: leave --model \(in Python factory=\) out"):
        lw.load(run, factory=torch.nn.Linear)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "nowhere"])
def test_a_name_that_no_run_folder_has_is_refused(name):
    with pytest.raises(InputError, match="no such run folder"):
        lw.load(name)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_links_out_of_the_run_folder_are_not_followed(name, run, tmp_path):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link to another place"):
        lw.load(run)


def test_a_journal_that_is_a_link_is_not_written_to(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.sqlite").symlink_to(victim)
    with pytest.raises(InputError, match="is a link to another place"):
        quick(table(), "label", out=tmp_path / "run")
    assert victim.read_bytes() == b""


def test_a_link_that_lies_where_a_file_is_about_to_be_written_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".new.csv.unfinished").symlink_to(victim)
    with whole(tmp_path / "new.csv") as unfinished:
        unfinished.write_text("theirs")
    assert victim.read_text() == "mine"
    assert (tmp_path / "new.csv").read_text() == "theirs"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{", "1", '{"a": 1}', "[1]", "9" * 10_000, '[{"a": 1, "a": 2}]', ""]
)
def test_a_crafted_journal_is_refused_in_one_line(content, tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", "plan")
    journal.add(0, [])
    journal.close()
    store = sqlite3.connect(tmp_path / "journal.sqlite")
    with store:
        store.execute("UPDATE groups SET result = ?", (content,))
    store.close()
    with pytest.raises(InputError) as caught:
        Journal(tmp_path / "journal.sqlite", "plan").results()
    assert str(caught.value).isprintable()


def changed_replica(**fields):
    replica = {"objective": "CrossEntropyLoss", "setting": "default", "setting_number": 0, "fold": 0, "repeat": 0}
    return replica | {"dropped": False, "inner_score": 0.5, "metrics": {"accuracy": 0.5}} | fields


@pytest.mark.parametrize(
    "fields",
    [{"hook": 1}, {"fold": "0"}, {"metrics": []}, {"metrics": {"a": "b"}}, {"dropped": 1}, {"objective": None}],
)
def test_a_run_does_not_go_on_from_results_that_no_run_wrote(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "results", lambda _: [changed_replica(**fields)])
    with pytest.raises(InputError, match="holds what no run has written") as caught:
        quick(table(), "label", out=tmp_path / "run")
    assert str(caught.value).isprintable()


def test_json_that_is_strict_is_read():
    assert parse_json('{"a": [1, 2.5, null, "b"]}') == {"a": [1, 2.5, None, "b"]}
    assert np.isnan(parse_json("[NaN]", nan=True)[0])
    with pytest.raises(ValueError, match="NaN"):
        parse_json("[NaN]")


def test_loading_runs_no_code_even_where_a_factory_is_named(run, monkeypatch):
    """Neither the file that is named nor one that lies in the folder."""
    monkeypatch.chdir(run)
    for name in ("evil.py", "model.py", "sitecustomize.py", "conftest.py", "lossworks.py", "recipe.py"):
        (run / name).write_text("raise SystemExit('owned')")
    describe(run, lambda d: d["architecture"].update(model="factory"))
    with pytest.raises(InputError, match=r"give it again as --model FILE.py:FUNCTION \(in Python factory=\)"):
        lw.load(run)
    for named in ("evil.py:model", "evil:model", "./evil.py", "os.system"):
        describe(run, lambda d, named=named: d["architecture"].update(model=named))
        with pytest.raises(InputError, match="model must be one of"):
            lw.load(run)
    assert not {"evil", "model", "sitecustomize"} & {
        name for name, module in sys.modules.items() if str(run) in str(getattr(module, "__file__", ""))
    }


@pytest.mark.parametrize(
    "target", ["../../x", "/etc/passwd", "..", "a/b", "\\\\share\\x", "~/x", "-rf", "\n", "con\x00"]
)
def test_a_run_is_named_inside_the_runs_folder_whatever_the_target_is_called(target, monkeypatch, tmp_path):
    from lossworks.cli.compare import free_folder

    monkeypatch.chdir(tmp_path)
    folder = free_folder(target)
    assert folder.parent == Path("runs")
    assert (tmp_path / folder).resolve().parent == tmp_path / "runs"
    assert not folder.name.startswith(("-", "."))


# Generated code


def own_code(tree: ast.AST) -> str:
    """The code without its literals and docstring."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node):
            return ast.copy_location(ast.Constant("" if isinstance(node.value, str) else 0), node)

    return ast.unparse(Blank().visit(tree))


def test_hostile_names_are_literals_in_the_recipe_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.delenv("OWNED", raising=False)
    names = [name for name in HOSTILE if "\x00" not in name and "/" not in name]
    folder = tmp_path / "a'b\"{0}\\ \u2028"
    folder.mkdir()
    source = folder / 'd\'"""{x}\n.parquet'
    target = HOSTILE[0]
    table(names[1:5], target, (HOSTILE[1], HOSTILE[4])).write_parquet(source)
    quick(
        source, target, {HOSTILE[0]: FocalLoss()}, drop=[names[3]], columns={names[2]: "number"}, out=tmp_path / "run"
    )
    code = (tmp_path / "run" / "recipe.py").read_text(encoding="utf-8")
    tree = ast.parse(code)
    plain = tmp_path / "plain.parquet"
    table(["a", "b", "c", "d"], "e").write_parquet(plain)
    quick(plain, "e", {"FocalLoss": FocalLoss()}, drop=["c"], columns={"b": "number"}, out=tmp_path / "plain")
    expected = (tmp_path / "plain" / "recipe.py").read_text(encoding="utf-8")
    literals = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {target, names[2], names[3], str(source.resolve())} <= literals
    assert own_code(tree) == own_code(ast.parse(expected))
    ran = subprocess.run(
        [sys.executable, tmp_path / "run" / "recipe.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        | {"OMP_NUM_THREADS": "1", "PATH": ""},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "held-out rows" in ran.stdout
    assert not list(tmp_path.rglob("owned"))
    assert "OWNED" not in os.environ


@pytest.mark.parametrize("name", HOSTILE)
def test_an_objective_of_any_name_wins_without_becoming_code(name, tmp_path, monkeypatch):
    monkeypatch.setattr("lossworks.comparison.handover.outcome.winner", lambda _: name)
    quick(table(), "label", {name: FocalLoss()}, out=tmp_path / "run")
    code = (tmp_path / "run" / "recipe.py").read_text(encoding="utf-8")
    body = ast.parse(code).body
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)
    assert "OWNED" not in own_code(ast.Module(body[1:], []))
    assert "lw.losses.FocalLoss()" in code


def test_a_class_of_the_users_own_with_a_hostile_name_is_never_code(tmp_path, monkeypatch):
    evil = "x\nimport os; os.environ['OWNED'] = '1'\n"
    own = type(evil, (CrossEntropyLoss,), {"__doc__": "Mine.", "__module__": "mine"})
    monkeypatch.setattr("inspect.getsourcefile", lambda _: HOSTILE[0])
    quick(table(), "label", {"CrossEntropyLoss": own()}, out=tmp_path / "run")
    tree = ast.parse((tmp_path / "run" / "recipe.py").read_text(encoding="utf-8"))
    assert "OWNED" not in own_code(tree)


# Spreadsheets


def test_what_a_spreadsheet_would_run_is_quoted_and_numbers_stay_numbers():
    risky = [
        "=1+1",
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20x",
        " =1",
        "-",
        "+cmd|' /C",
    ]
    harmless = ["-1", "+1", "-1.5", "-1e-9", "yes", "a=b", "1-2", "", None]
    frame = pl.DataFrame({"text": risky + harmless, "=number": [-1.5] * 23})
    safe = spreadsheet_safe(frame)
    assert safe["text"].to_list() == [f"'{cell}" for cell in risky] + harmless
    assert safe["'=number"].to_list() == [-1.5] * 23


def test_quoted_names_stay_apart():
    frame = pl.DataFrame({"=a": [1], "'=a": [2], "''=a": [3], "b": [4]})
    safe = spreadsheet_safe(frame)
    assert len(set(safe.columns)) == 4
    assert safe.row(0) == (1, 2, 3, 4)
    assert not any(name[0] in "=+-@" for name in safe.columns)


def test_no_separator_parts_a_cell(tmp_path):
    """A spreadsheet that takes ; or tab for the separator does not find a formula inside a text."""
    frame = pl.DataFrame({"a;=b": ["x;=1+1", "x\t=1", 'say "=1"', "x\n=1"], "n": [-1.0, 2.0, 3.0, 4.0]})
    text = write_csv(frame)
    for separator in ",;\t":
        cells = [cell for row in csv.reader(io.StringIO(text), delimiter=separator) for cell in row]
        assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
    write_csv(frame, tmp_path / "a.csv")
    assert pl.read_csv(tmp_path / "a.csv").rows() == frame.rows()
