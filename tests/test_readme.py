"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

from lossworks.catalog import parts

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_of_every_level_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), scope)
    assert "CrossEntropyLoss" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"\b[A-Z][A-Za-z]+Loss\b", TEXT)) - {"MyLoss", "CrossEntropyLoss"})
)
def test_parts_that_it_names_exist(name):
    assert name in parts()


def test_files_that_it_links_to_exist():
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (Path(__file__).parents[1] / path).exists(), path
