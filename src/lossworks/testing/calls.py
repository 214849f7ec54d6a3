"""Example calls of what has no role with inputs of its own: those that its docstring makes."""

import contextlib
import copy
import doctest
import functools
import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

__all__ = ["Call", "NoExampleError", "Outcome", "documented_call", "named_arguments"]


class NoExampleError(AssertionError):
    """A part whose docstring doesn't call it."""


class Outcome(NamedTuple):
    """What was seen when a call was made once.

    Attributes:
        result: What came of it.
        given: The arguments before the call, by name.
        left: The same afterwards.
        owner: The object whose method it was, afterwards.
        printed: What it printed.
        warned: The warnings that it gave.
        drew: Whether torch's generator moved.
    """

    result: Any
    given: Mapping[str, Any]
    left: Mapping[str, Any]
    owner: Any
    printed: str
    warned: tuple[str, ...]
    drew: bool


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a function, or of a method of an object.

    Attributes:
        function: What is called; of a method the function that takes the object first.
        owner: The object whose method it is, or None.
        arguments: By position.
        columns: By name.
    """

    function: Callable[..., Any]
    owner: Any
    arguments: tuple[Any, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def fresh(self) -> "Call":
        """The same call on copies of all that it is given, so that nothing it changes is seen by others."""
        kept = (self.owner, self.arguments, dict(self.columns))
        owner, arguments, columns = copy.deepcopy(kept)
        return Call(self.function, owner, arguments, columns)

    @cached_property
    def outcome(self) -> Outcome:
        """What is seen of the call, made once on copies."""
        own, printed = self.fresh(), io.StringIO()
        given = copy.deepcopy(named_arguments(own))
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            warned = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(printed))
            torch.manual_seed(0)
            before = torch.get_rng_state()
            result = own.made()
            drew = not torch.equal(torch.get_rng_state(), before)
        said = tuple(str(warning.message) for warning in warned)
        return Outcome(result, given, named_arguments(own), own.owner, printed.getvalue(), said, drew)

    def seeded(self) -> Any:
        """What comes of the call, made on copies, with the draws that :attr:`outcome` has."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.fresh().made()

    def made(self) -> Any:
        """What comes of the call."""
        before = () if self.owner is None else (self.owner,)
        return self.function(*before, *self.arguments, **self.columns)

    def with_arguments(self, changed: Mapping[str, Any]) -> "Call":
        """The same call with other values for some of the arguments."""
        named = {**named_arguments(self), **changed}
        signature = inspect.signature(self.function)
        placed: list[Any] = []
        columns: dict[str, Any] = {}
        for name, parameter in list(signature.parameters.items())[self.owner is not None :]:
            if name not in named:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                placed += named[name]
            elif parameter.kind is parameter.VAR_KEYWORD:
                columns |= named[name]
            elif parameter.kind is parameter.KEYWORD_ONLY or len(placed) < self._place(name):
                columns[name] = named[name]
            else:
                placed.append(named[name])
        return Call(self.function, self.owner, tuple(placed), columns)

    def _place(self, name: str) -> int:
        names = list(inspect.signature(self.function).parameters)[self.owner is not None :]
        return names.index(name)

    @property
    def title(self) -> str:
        """What is called, for a message."""
        return getattr(self.function, "__name__", type(self.function).__name__)


def named_arguments(call: Call) -> dict[str, Any]:
    """What the call is given, by the arguments' names."""
    before = () if call.owner is None else (call.owner,)
    bound = inspect.signature(call.function).bind(*before, *call.arguments, **call.columns)
    return dict(list(bound.arguments.items())[call.owner is not None :])


def documented_call(part: Any) -> Call:
    """The first call that the part's docstring makes of it; of an object's class the first call of a method.

    Raises:
        NoExampleError: where the docstring calls it nowhere.
    """
    described: Any = part if inspect.isroutine(part) or inspect.isclass(part) else type(part)
    call = _first_call(described)
    return call if described is part else replace(call, owner=part)


@functools.cache
def _first_call(described: Any) -> Call:
    """The first call in the docstring of a function or a class."""
    calls: list[Call] = []
    names = {**vars(sys.modules[described.__module__]), described.__name__: described}
    with contextlib.ExitStack() as stack:
        if inspect.isroutine(described):
            names[described.__name__] = _recorder(described, calls, method=False)
        else:
            stack.enter_context(_recorded_methods(described, calls))
        text = inspect.getdoc(described) or ""
        example = doctest.DocTestParser().get_doctest(text, names, described.__name__, None, 0)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        said = io.StringIO()
        stack.enter_context(contextlib.redirect_stdout(said))
        doctest.DocTestRunner(verbose=False).run(example, out=said.write, clear_globs=False)
    if not calls:
        raise NoExampleError(f"the docstring of {described.__name__} has no call of it to try")
    return calls[0]


def _recorder(function: Callable[..., Any], calls: list[Call], *, method: bool) -> Callable[..., Any]:
    busy = False

    @functools.wraps(function)
    def recording(*arguments: Any, **columns: Any) -> Any:
        nonlocal busy
        if busy or calls:
            return function(*arguments, **columns)
        busy = True
        try:
            owner, rest = (arguments[0], arguments[1:]) if method else (None, arguments)
            call = Call(function, owner, rest, columns).fresh()
            result = function(*arguments, **columns)
            calls.append(call)
            return result
        finally:
            busy = False

    return recording


@contextlib.contextmanager
def _recorded_methods(described: type, calls: list[Call]) -> Iterator[None]:
    """Every public method of the class, and the call of its objects, recorded."""
    found = [
        (name, getattr(described, name))
        for name in dir(described)
        if not name.startswith("_") and (name == "forward" or not hasattr(torch.nn.Module, name))
    ]
    if not issubclass(described, torch.nn.Module) and "__call__" in vars(described):
        found.append(("__call__", vars(described)["__call__"]))
    own = {name: vars(described)[name] for name, _ in found if name in vars(described)}
    methods = [(name, method) for name, method in found if inspect.isfunction(method)]
    for name, method in methods:
        setattr(described, name, _recorder(method, calls, method=True))
    try:
        yield
    finally:
        for name, _ in methods:
            if name in own:
                setattr(described, name, own[name])
            else:
                delattr(described, name)
