"""A part as the contract takes it, with what its checks may need."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lossworks.checks import shown
from lossworks.objective import Objective
from lossworks.roles import Part, Selector, Wrapper
from lossworks.testing.calls import Call, NoExampleError, documented_call
from lossworks.testing.checks.optimizers import Update
from lossworks.testing.inputs import Recipe, build
from lossworks.testing.ranks import Ranks

__all__ = ["Subject", "subject_of"]

NOT_PARTS = (str, bytes, bool, int, float, complex, list, tuple, dict, set, Tensor, np.ndarray, ModuleType)
"""Values of these types are no parts, whatever their docstrings say."""


@dataclass(frozen=True)
class Subject:
    """A part under contract, and what a check of it may need.

    Attributes:
        part: The part; a wrapper of an optimizer as a :class:`~lossworks.testing.inputs.Recipe`.
        name: The part's name in messages.
        example: The example call of a function or an object, if the one in its docstring is not to be used.
        update: A wrapper's update written out, see :data:`~lossworks.testing.checks.optimizers.Update`.
        ranks: Gives two processes or more, for what is spread over them.
    """

    part: Any
    name: str
    example: Call | None = None
    update: Update | None = None
    ranks: Callable[[], Ranks] | None = None

    @cached_property
    def call(self) -> Call | None:
        """An example call, or None where the docstring has none that can be made again."""
        try:
            return documented_call(self.part) if self.example is None else self.example
        except NoExampleError:
            return None


def subject_of(part: Any, setting: Mapping[str, Any] | None = None, **given: Any) -> Subject:
    """The part as the contract takes it.

    Args:
        part: An instance of a role, or its class, which is built with the setting; a wrapper of an optimizer as a class
            or as a function of an optimizer; a function; or an object of a class without a role.
        setting: The setting in which a class is built; its first setting by default.
        given: Further attributes of :class:`Subject`.
    """
    if part is None or isinstance(part, NOT_PARTS):
        raise TypeError(f"part must be an instance of a role, a class or a function, got {shown(part)}")
    name = getattr(part, "__name__", type(part).__name__)
    if isinstance(part, Wrapper):
        raise TypeError(f"part must be the class {name}, or a function that makes one from an optimizer, got one made")
    if inspect.isclass(part):
        declared: Sequence[Mapping[str, Any]] = getattr(part, "settings", ())
        chosen = declared[0] if setting is None and declared else (setting or {})
        if issubclass(part, Wrapper):
            part = Recipe(part, chosen)
        elif issubclass(part, Selector) and not chosen:
            part = documented_call(part).owner
        elif issubclass(part, (Part, Objective, Selector)):
            part = _built(part, chosen)
    elif callable(part) and not isinstance(part, (nn.Module, Selector)) and not hasattr(part, "papers"):
        part = _recipe(part)
    return Subject(part, name, **given)


def _built(part: type[Any], setting: Mapping[str, Any]) -> Any:
    """An instance of the class."""
    try:
        return build(part, setting)
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise TypeError(
            f"part must be an instance of {part.__name__}, or the class must say in settings and needs how one is "
            f"built: {said}"
        ) from error


def _recipe(factory: Any) -> Any:
    """A function of an optimizer that makes a wrapper, as the contract takes it; what is none as it came."""
    try:
        with torch.random.fork_rng(devices=[]):
            made = factory(SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    except Exception:
        return factory
    return Recipe(type(made), {}, factory) if isinstance(made, Wrapper) else factory
