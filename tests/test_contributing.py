"""The worked examples of the guide, one of every role, are parts that keep the contract."""

import doctest
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lossworks.roles import Wrapper
from lossworks.testing import build, check_part
from lossworks.testing.inputs import driven

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROLES = (ROOT / "docs" / "adding-parts.md").read_text(encoding="utf-8")
EXAMPLES = {
    "Loss": re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)[0],
    **dict(re.findall(r"^## ([\w ]+)\n.*?```python\n(.*?)```", ROLES, flags=re.DOTALL | re.MULTILINE)),
}


@pytest.fixture
def example(request, monkeypatch):
    """A module of an example's code, where pickle finds what is in it, and the part that it defines."""
    module = types.ModuleType("worked_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLES[request.param], request.param, "exec"), module.__dict__)
    (part,) = (held for held in vars(module).values() if getattr(held, "__module__", "") == module.__name__)
    return module, part


def test_every_role_of_the_table_has_an_example():
    table = re.findall(r"^\| \[?([a-z ]+)", ROLES, flags=re.MULTILINE)[1:]
    assert [role.strip().capitalize() for role in table] == [*EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, indirect=True)
def test_an_example_keeps_the_contract_in_each_of_its_settings(example):
    module, part = example
    assert part.papers
    tried = doctest.testmod(module)
    assert tried.attempted
    assert not tried.failed
    if not isinstance(part, type) or issubclass(part, Wrapper):
        assert "passed" in check_part(part).values()
        return
    for setting in driven(part):
        made = build(part, setting) if hasattr(part, "needs") else part(**setting)
        assert "passed" in check_part(made).values()


@pytest.mark.parametrize("example", ["Loss"], indirect=True)
def test_the_guides_own_test_passes(example, generator):
    scope = {"torch": torch, "assert_close": assert_close, "UnhingedLoss": example[1]}
    exec(compile(re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)[2], "CONTRIBUTING.md", "exec"), scope)
    scope["test_is_symmetric_over_labels"](generator)


def test_files_that_the_guide_names_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", GUIDE)
    named = {word for word in re.findall(r"`([\w/]+\.(?:py|md|toml))`", GUIDE) if "unhinged" not in word}
    assert named
    for name in [*links, *named]:
        assert any((ROOT / place / name).exists() for place in ("", "src/lossworks")), name


def test_the_guide_tells_the_floors_of_the_house():
    from tests.test_house import FLOORS

    told = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| \d \| (.*?) \|", GUIDE, flags=re.MULTILINE)]
    assert [set(floor) for floor in reversed(told)] == [set(floor) for floor in FLOORS]
