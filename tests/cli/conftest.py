import sys
from pathlib import Path

import polars as pl
import pytest

import lossworks as lw
from lossworks.cli import main
from lossworks.comparison import Training

sys.path.insert(0, str(Path(__file__).parent))

from command_line import ROWS, Result, columns  # found by the line above


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder, with a short training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("lossworks.comparison.plan.default_training", lambda _: Training(16, 40, 10))

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["lossworks", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def csv(tmp_path):
    pl.DataFrame(columns()).write_csv(tmp_path / "customers.csv")
    return "customers.csv"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with a table and the finished run on it."""
    folder = tmp_path_factory.mktemp("finished")
    pl.DataFrame(columns() | {"day": ["2024-01-02", "2024-03-04"] * (ROWS // 2)}).write_csv(folder / "customers.csv")
    lw.compare(
        folder / "customers.csv",
        "churn",
        objectives=["FocalLoss"],
        model="linear",
        folds=2,
        repeats=1,
        columns={"day": "date"},
        training=Training(16, 40, 10),
        out=folder / "run",
    )
    return folder
