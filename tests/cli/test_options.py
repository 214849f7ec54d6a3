from pathlib import Path

from command_line import MODEL_FILE, ROWS


def test_a_factory_in_a_file_is_the_model(cli, csv):
    Path("mine.py").write_text(MODEL_FILE)
    model = ["--objectives", "FocalLoss", "--folds", "2", "--repeats", "1", "--model", "mine.py:build"]
    assert cli("compare", csv, "--target", "churn", "--out", "run", "--quiet", *model).code == 0
    assert "factory" in cli("predict", "run", csv).err
    predicted = cli("predict", "run", csv, "--model", "mine.py:build")
    assert len(predicted.out.splitlines()) == ROWS + 1


def test_a_model_file_that_ends_the_program_does_not(cli, csv):
    Path("ends.py").write_text("raise SystemExit(7)\n")
    result = cli("compare", csv, "--target", "churn", "--model", "ends.py:build")
    assert result.code == 2
    assert "ends.py fails when imported (SystemExit: 7)" in result.one_line()
