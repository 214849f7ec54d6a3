"""Every choice that a part's constructor offers is driven by some setting of the contract."""

import inspect
import re
from typing import Any

import pytest
import torch

from lossworks.catalog import parts
from lossworks.roles import Wrapper
from lossworks.testing.inputs import build, driven

ELSEWHERE = {
    "reduction": "the checks of reductions drive it",
    "order": "it is a sequence of the user's own names",
}
WRONG = "no such choice"


def _choices(part: type, argument: inspect.Parameter) -> list[Any]:
    """The values of an argument that is a switch, or a text out of some, by what its own error says."""
    if isinstance(argument.default, bool):
        return [False, True]
    if not isinstance(argument.default, str) and "str" not in str(argument.annotation):
        return []
    setting = {**driven(part)[0], argument.name: WRONG}
    with pytest.raises((ValueError, TypeError)) as caught:
        part(**setting, **_given(part)) if issubclass(part, Wrapper) else build(part, setting)
    listed = re.search(rf"{argument.name} must be one of (.*), got", str(caught.value))
    assert listed, f"the error of a wrong {argument.name} must list the choices: {caught.value}"
    choices: list[Any] = [name for name in re.split(r", | or ", listed[1].replace("'", "")) if name]
    return choices + [None] * ("None" in str(argument.annotation) or argument.default is None)


def _given(part: type) -> dict[str, Any]:
    model = torch.nn.Linear(2, 1)
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "model": model}
    return {name: value for name, value in given.items() if name in inspect.signature(part).parameters}


CASES = [
    (name, entry.part, argument)
    for name, entry in parts().items()
    if inspect.isclass(entry.part) and hasattr(entry.part, "settings")
    for argument in list(inspect.signature(entry.part.__init__).parameters.values())[1:]
    if argument.name not in ELSEWHERE
]


def test_every_choice_is_driven():
    left = {}
    for name, part, argument in CASES:
        tried = [setting.get(argument.name, argument.default) for setting in driven(part)]
        if missing := [choice for choice in _choices(part, argument) if choice not in tried]:
            left[f"{name}({argument.name}=)"] = missing
    assert not left, "add a setting to `modes` for each"


def test_the_choices_are_found_where_they_are():
    found = {(name, argument.name): _choices(part, argument) for name, part, argument in CASES}
    assert found["AdaptiveLDRLoss", "mode"] == ["one_step", "exact"]
    assert found["AdaptiveLDRLoss", "normalize"] == ["softplus_mean", "l1_mean", None]
    assert found["IGNITE", "mode"] == ["constrained", "fixed"]
    assert found["PGD", "random_start"] == [False, True]
    assert sum(bool(choices) for choices in found.values()) > 20
