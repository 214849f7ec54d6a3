"""All tasks, found by importing every module of this package."""

import functools
import importlib
import inspect
import pkgutil

from lossworks.checks import check_choice
from lossworks.comparison.tasks.base import Task

__all__ = ["find_task", "tasks"]


@functools.cache
def tasks() -> dict[str, Task]:
    """Every task by its name, in the order in which the tasks are asked whether they recognise a target.

    >>> list(tasks())
    ['real', 'binary', 'multiclass', 'counts']
    """
    package = importlib.import_module("lossworks.comparison.tasks")
    found: dict[str, Task] = {}
    for module in pkgutil.iter_modules(package.__path__):
        there = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        for kind in there.values():
            own = inspect.isclass(kind) and kind.__module__ == f"{package.__name__}.{module.name}"
            if own and issubclass(kind, Task) and hasattr(kind, "name"):  # a class without a name is a base class
                if kind.name in found:
                    raise ValueError(f"two tasks are called {kind.name}: {type(found[kind.name])} and {kind}")
                found[kind.name] = kind()
    return dict(sorted(found.items(), key=lambda pair: pair[1].order))


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: there is no such task; the message lists all tasks and suggests the nearest name.
    """
    return tasks()[check_choice("task", name, tasks())]
