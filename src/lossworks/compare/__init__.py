"""The main job: which objective is better on this data, is the difference real, and the trained model.

The data takes one way through the files: ``data``, ``findings``, ``plan``, ``engine``, ``work``, ``journal``,
``judge``, ``run``.
"""

import inspect
import sys
import types
from typing import Any

from lossworks.compare.data import Dataset, embedded, read
from lossworks.compare.encode import Encoder
from lossworks.compare.errors import InputError
from lossworks.compare.findings import Finding
from lossworks.compare.handover import Comparison
from lossworks.compare.jobs import Training
from lossworks.compare.model import Model, load_model
from lossworks.compare.run import Progress, compare

load = load_model

__all__ = [
    "Comparison",
    "Dataset",
    "Encoder",
    "Finding",
    "InputError",
    "Model",
    "Progress",
    "Training",
    "compare",
    "embedded",
    "load",
    "load_model",
    "read",
]


class _Callable(types.ModuleType):
    """This package is the function of its name too: once it is imported, Python binds ``lossworks.compare`` to it."""

    __signature__ = inspect.signature(compare)

    def __call__(self, *args: Any, **options: Any) -> Comparison:
        return compare(*args, **options)


sys.modules[__name__].__class__ = _Callable
