"""lossworks: find, train with, compare and trust a training objective for PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from lossworks import (
    calibrate,
    certify,
    diagnose,
    federated,
    layers,
    losses,
    metrics,
    optim,
    penalties,
    perturb,
    robust,
    select,
    weights,
)
from lossworks.checks import checks
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Penalty, Perturbation, Weighting

if TYPE_CHECKING:
    from lossworks import catalog, fused, testing
    from lossworks.compare import Comparison, Model, compare, load

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
    "federated",
    "fused",
    "layers",
    "load",
    "losses",
    "metrics",
    "optim",
    "penalties",
    "perturb",
    "robust",
    "select",
    "testing",
    "weights",
]

_WHEN_USED = {
    "Comparison": "lossworks.compare",
    "Model": "lossworks.compare",
    "compare": "lossworks.compare",
    "load": "lossworks.compare",
    "catalog": "lossworks.catalog",
    "fused": "lossworks.fused",
    "testing": "lossworks.testing",
}


def __getattr__(name: str) -> Any:
    """The tool and the kit, imported when first used: they are slow to import, and many users need neither."""
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'lossworks' has no attribute {name!r}")
    module = importlib.import_module(_WHEN_USED[name])
    return module if module.__name__ == f"lossworks.{name}" else getattr(module, name)
