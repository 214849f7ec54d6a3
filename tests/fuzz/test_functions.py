"""Every public function, by its signature."""

import fuzzing
import pytest
import torch
from fuzzing import arguments, attempt, outcome, parameters
from torch import nn

from lossworks.losses import CrossEntropyLoss
from lossworks.metrics.registry import METRICS
from lossworks.perturb import AdvStyle
from lossworks.select import CoTeachingSelector

FUNCTIONS = fuzzing.functions()
HELPERS = ("lossworks.checks.", "lossworks.roles.")
"""Where the arguments that are not checked come from the library itself, and fit."""
TOTAL = ("lossworks.checks.nearest", "lossworks.checks.shown")
"""What words an error, whatever came."""
NAMED = ("lossworks.catalog.show",)
"""What refuses all but the names in the catalog."""
CHECKED = ("value", "tensor", "output", "target", "sample_weight", "total")


def prepared(path):
    """What some functions take and random values are not."""
    asked, rows = parameters(FUNCTIONS[path]), torch.arange(6)
    if path.startswith("lossworks.fused.linear."):
        return {"hidden": torch.rand(6, 3), "weight": torch.rand(5, 3), "target": rows % 5, "loss": CrossEntropyLoss()}
    if path == "lossworks.perturb.style.adversarial_style_step":
        layer = AdvStyle(2)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        return {
            "model": layer,
            "loss": lambda y: y.square().mean(),
            "x": torch.rand(4, 2, 3, 3),
            "optimizer": optimizer,
        }
    if path.startswith("lossworks.metrics.stacked."):
        of_values = path.endswith(("rmse", "mae", "r2", "poisson_deviance"))
        target = torch.rand(2, 6) if of_values else (rows % 2).repeat(2, 1)
        return {"outputs": torch.rand(2, 6, 1 if of_values else 2), "target": target, "mask": torch.rand(2, 6) < 0.8}
    if path.startswith("lossworks.metrics.registry."):
        metric = METRICS["accuracy"] if path.endswith("worst_group") else "accuracy"
        return {"metric": metric}
    if path.startswith("lossworks.perturb.zeroth_order."):
        return {"f": lambda z: z.flatten(1).sum(1)}
    if path == "lossworks.perturb.transport.wasserstein_robust_surrogate":
        return {"loss_fn": lambda z, y: z.flatten(1).square().sum(1)}
    if path == "lossworks.select.co_teaching.co_teaching_step":
        models = [nn.Linear(3, 2), nn.Linear(3, 2)]
        return {
            "models": models,
            "optimizers": [torch.optim.SGD(model.parameters(), lr=0.1) for model in models],
            "loss": CrossEntropyLoss(),
            "selector": CoTeachingSelector(),
            "x": torch.rand(6, 3),
            "target": rows % 2,
        }
    if path == "lossworks.diagnose.closed_loop.closed_loop_rollout":
        return {"policy": lambda state: -state, "dynamics": torch.add}
    if path.startswith("lossworks.federated."):
        clients = [(torch.rand(4, 3), rows[:4] % 2), (torch.rand(6, 3), rows % 2)]
        models = [nn.Linear(3, 2) for _ in clients]
        fitting = {"model": nn.Linear(3, 2), "local_models": models, "clients": clients, "loss": CrossEntropyLoss()}
        fitting |= {"local_steps": 2}
        return {name: value for name, value in fitting.items() if name in asked}
    if path == "lossworks.layers.multi_sample_dropout.multi_sample_dropout_loss":
        return {"output": torch.rand(2, 6, 3), "target": rows % 3, "loss": CrossEntropyLoss()}
    if not {"model", "x"} <= asked.keys():
        return {}
    fitting = {"model": nn.Linear(3, 2), "oracle": nn.Linear(3, 2), "budget": 3}
    fitting |= {name: torch.rand(6, 3) for name in ("x", "x_test")}
    fitting |= dict.fromkeys(("target", "target_test"), rows % 2)
    return {name: value for name, value in fitting.items() if name in asked}


@pytest.mark.parametrize("path", FUNCTIONS)
def test_function(path, fuzz):
    function = FUNCTIONS[path]
    helper = path.startswith(HELPERS)
    names = [*parameters(function), *(["argument"] if helper else [])]
    names += ["output"] if "model" in names else []
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

    fuzz(strategy, check, alike=path in (*TOTAL, *NAMED))
