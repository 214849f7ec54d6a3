"""Every public function, by its signature."""

import fuzzing
import pytest
import torch
from fuzzing import arguments, attempt, outcome, parameters
from torch import nn

from lossworks.losses import CrossEntropyLoss
from lossworks.perturb import AdvStyle
from lossworks.select import CoTeachingSelector

FUNCTIONS = fuzzing.functions()
HELPERS = ("lossworks.checks.", "lossworks.roles.")
"""Where the arguments that are not checked come from the library itself, and fit."""
TOTAL = ("lossworks.checks.nearest", "lossworks.checks.shown")
"""What words an error, whatever came."""
CHECKED = ("value", "tensor", "output", "target", "sample_weight", "total")


def prepared(path):
    """What some functions take and random values are not."""
    if path.startswith("lossworks.fused.linear."):
        rows = torch.arange(6)
        return {"hidden": torch.rand(6, 3), "weight": torch.rand(5, 3), "target": rows % 5, "loss": CrossEntropyLoss()}
    if path.startswith("lossworks.diagnose.oracle."):
        return {"model": torch.nn.Linear(3, 2), "oracle": torch.nn.Linear(3, 2), "budget": 3}
    if path == "lossworks.perturb.style.adversarial_style_step":
        layer = AdvStyle(2)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        return {
            "model": layer,
            "loss": lambda y: y.square().mean(),
            "x": torch.rand(4, 2, 3, 3),
            "optimizer": optimizer,
        }
    if path in ("lossworks.diagnose.influence.influence_matrix", "lossworks.diagnose.influence.self_influence"):
        rows = {"model": torch.nn.Linear(3, 2), "x": torch.rand(6, 3), "target": torch.arange(6) % 2}
        return rows if path.endswith("self_influence") else rows | {"x_test": rows["x"], "target_test": rows["target"]}
    if path == "lossworks.select.co_teaching.co_teaching_step":
        models = [nn.Linear(3, 2), nn.Linear(3, 2)]
        return {
            "models": models,
            "optimizers": [torch.optim.SGD(model.parameters(), lr=0.1) for model in models],
            "loss": CrossEntropyLoss(),
            "selector": CoTeachingSelector(),
            "x": torch.rand(6, 3),
            "target": torch.arange(6) % 2,
        }
    return {}


@pytest.mark.parametrize("path", FUNCTIONS)
def test_function(path, fuzz):
    function = FUNCTIONS[path]
    helper = path.startswith(HELPERS)
    names = [*parameters(function), *(["argument"] if helper else [])]
    also = (KeyError,) if path == "lossworks.catalog.show" else ()
    strategy = (
        arguments(
            function, {"name": "argument", "names": ("output", "target"), "dim": "C", "low": 0, "high": 1}, CHECKED
        )
        if helper
        else arguments(function, prepared(path))
    )

    def check(given):
        return outcome(attempt(lambda: function(**given), names, *also))

    fuzz(strategy, check, alike=path in TOTAL)
