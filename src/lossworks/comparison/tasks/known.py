"""Every task that there is, found by looking into this package."""

import functools
import importlib
import inspect
import pkgutil

from lossworks.checks import check_choice
from lossworks.comparison.tasks.base import Task

__all__ = ["find_task", "tasks"]


@functools.cache
def tasks() -> dict[str, Task]:
    """Each task by its name, in the order in which they are asked whether they recognise a target.

    >>> list(tasks())
    ['real', 'binary', 'multiclass', 'counts']
    """
    package = importlib.import_module("lossworks.comparison.tasks")
    found: dict[str, Task] = {}
    for module in pkgutil.iter_modules(package.__path__):
        there = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        for kind in there.values():
            own = inspect.isclass(kind) and kind.__module__ == f"{package.__name__}.{module.name}"
            if own and issubclass(kind, Task) and hasattr(kind, "name"):  # what has none is shared by several
                if kind.name in found:
                    raise ValueError(f"two tasks are called {kind.name}: {type(found[kind.name])} and {kind}")
                found[kind.name] = kind()
    return dict(sorted(found.items(), key=lambda pair: pair[1].order))


def find_task(name: str) -> Task:
    """The task of this name; the error lists those that there are and suggests the nearest.

    Raises:
        ValueError: there is none.
    """
    return tasks()[check_choice("task", name, tasks())]
