"""The worked example of CONTRIBUTING.md is a part that keeps the contract."""

import re
import sys
import types
from pathlib import Path

import torch
from torch.testing import assert_close

from lossworks.testing import check_loss

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_worked_example_keeps_the_contract(generator, monkeypatch):
    part, _, test = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    module = types.ModuleType("unhinged")
    monkeypatch.setitem(sys.modules, "unhinged", module)  # where pickle looks for the class
    exec(compile(part, "CONTRIBUTING.md", "exec"), module.__dict__)
    assert check_loss(module.UnhingedLoss())["assert_gradcheck"] == "passed"
    scope = {"torch": torch, "assert_close": assert_close, "UnhingedLoss": module.UnhingedLoss}
    exec(compile(test, "CONTRIBUTING.md", "exec"), scope)
    scope["test_is_symmetric_over_labels"](generator)
