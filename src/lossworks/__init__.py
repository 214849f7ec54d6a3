"""lossworks: find, train with, compare and trust a training objective for PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from lossworks.checks import checks

if TYPE_CHECKING:
    from lossworks import (
        calibrate,
        catalog,
        certify,
        diagnose,
        distill,
        embed,
        federated,
        fused,
        layers,
        losses,
        metrics,
        objectives,
        optim,
        penalties,
        perturb,
        roles,
        select,
        testing,
        verdict,
        weights,
    )
    from lossworks.comparison import Comparison, Model, compare, load
    from lossworks.objective import Objective
    from lossworks.roles import BatchLoss, Loss, Penalty, Perturbation, Weighting

__version__ = "0.1.0"

__all__ = [
    "BatchLoss",
    "Comparison",
    "Loss",
    "Model",
    "Objective",
    "Penalty",
    "Perturbation",
    "Weighting",
    "calibrate",
    "catalog",
    "certify",
    "checks",
    "compare",
    "diagnose",
    "distill",
    "embed",
    "federated",
    "fused",
    "layers",
    "load",
    "losses",
    "metrics",
    "objectives",
    "optim",
    "penalties",
    "perturb",
    "roles",
    "select",
    "testing",
    "verdict",
    "weights",
]

_HOMES = {
    "BatchLoss": "roles",
    "Comparison": "comparison",
    "Loss": "roles",
    "Model": "comparison",
    "Objective": "objective",
    "Penalty": "roles",
    "Perturbation": "roles",
    "Weighting": "roles",
    "compare": "comparison",
    "load": "comparison",
}
"""The names that are no subpackages, and where each is."""


def __getattr__(name: str) -> Any:
    """A subpackage or a name of one, imported when it is first used: many users need few of them."""
    if name not in __all__:
        raise AttributeError(f"module 'lossworks' has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"lossworks.{name}")
    return getattr(importlib.import_module(f"lossworks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
