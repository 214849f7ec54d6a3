"""The command line with any arguments: exit code 0, 1, or 2 with one line, and never a traceback."""

import sys

import hypothesis.strategies as st
import pytest
from fuzzing import ACCEPTED, REFUSED
from test_models import MODELS

from lossworks import cli
from lossworks.comparison import InputError

COMMANDS = (*("compare", "predict", "attack", "find", "list", "show", "claims", ""),)
NAMES = (
    "target metric objectives model folds repeats group task drop as rope seed budget device out quiet json help limit "
    "attack eps norm certify"
)
OPTIONS = [*(f"--{name}" for name in [*NAMES.split(), "results", "fold", ""]), "-x"]
WORDS = (
    "y a b z accuracy rmse auroc CrossEntropyLoss FocalLoss,LDRLoss FocalLoss+ClassBalanced + , mlp linear cnn "
    "transformer model.py:build model.py:nothing broken.py:f ends.py:f nowhere.py:f : .py: -1 0 1 2 3 "
    "99999999999999999999 1.5 nan inf 1e999 linf:0.1 l2:1 linf: l2 "
    "binary real multiclass auto cpu cuda data.csv data.tsv nowhere.csv folder run ../../x a=number y=date =number a= "
    "[/b] [bold] LDRLoss zhu2023ldr new.csv new.parquet new.xlsx folder/new.csv"
)
VALUES = [*WORDS.split(), "", "\x1b[31m", "noisy labels", "a b=date", ":dog:", "y" * 300, f"{'y' * 300}.py:f"]


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """A folder with a little of everything, in which nothing is trained or measured."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "run").mkdir()
    MODELS["binary"].save(tmp_path / "run")
    rows = "".join(f"{number},{'xz'[number % 3 == 0]},{number % 2}\n" for number in range(40))
    (tmp_path / "data.csv").write_text(f"a,b,y\n{rows}")
    (tmp_path / "data.tsv").write_text("a\ty\n1\t2\n")
    (tmp_path / "model.py").write_text("from torch import nn\ndef build(shape, k): return nn.Linear(shape[0], k)\n")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "ends.py").write_text("raise SystemExit(7)")

    def stop(*_, **__):
        raise InputError("nothing is trained here")

    monkeypatch.setattr("lossworks.runs.bench.Bench.run", stop)
    monkeypatch.setattr("claims.run", stop)
    monkeypatch.setattr("claims.ldr_table.run", stop)

    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["lossworks", *arguments])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert code in (0, 1, 2), (code, captured.err)
        if code == 2:
            lines = captured.err.strip().splitlines()
            assert len(lines) == 1 or captured.out.lstrip().startswith("Usage"), captured.err
            assert not lines or lines[0].startswith("error: "), captured.err
            assert "\x1b" not in captured.err
            return REFUSED
        return ACCEPTED

    return run


words = st.sampled_from(VALUES) | st.text(st.characters(exclude_categories=("Cs",)), max_size=6)


@st.composite
def lines(draw, command):
    """A command with options and values in any order."""
    arguments = command.split()
    if draw(st.booleans()):
        arguments += draw(
            st.sampled_from([["data.csv", "--target", "y"], ["run", "data.csv"], ["LDRLoss"], ["data.csv"]])
        )
    for _ in range(draw(st.integers(0, 3))):
        arguments += [draw(st.sampled_from(OPTIONS))] if draw(st.booleans()) else []
        arguments += [draw(words)] if draw(st.integers(0, 3)) else []
    return [argument.replace("\x00", "") for argument in arguments]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, fuzz, place):
    fuzz(lines(command), place)
