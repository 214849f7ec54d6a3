"""What every part keeps, whatever its role: it is documented, quiet, repeatable and has no hidden state.

A check here is given the part and a ``use``, which calls the part once on the example of its role.
"""

import contextlib
import copy
import dataclasses
import inspect
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.testing import assert_close

from lossworks.objective import Objective
from lossworks.roles import Part, Selector, Wrapper
from lossworks.testing.inputs import expect_error

__all__ = [
    "Use",
    "buffers_outlive_half",
    "copies_the_same",
    "documented",
    "float_hyperparameters",
    "hyperparameters_checked",
    "no_hidden_state",
    "quiet",
    "repeatable",
    "required",
    "same",
    "seeded",
    "state_round_trip",
    "torch_generator_left_alone",
]

Use = Callable[[Any], Any]


def documented(part: Any) -> None:
    """The docstring has purpose, equation, arguments, shapes, errors, when to use it, source and an example."""
    plain = inspect.isclass(part) or inspect.isroutine(part)
    text = inspect.getdoc(part if plain else type(part)) or ""
    assert text.partition("\n")[0].rstrip().endswith("."), "the docstring's first line is not a sentence"
    papers = getattr(part, "papers", ())
    wanted = [">>>", *(["Papers:"] if papers else [])]
    if not inspect.isroutine(part):
        wanted += ["math::", "Papers:"]
    kind = part if inspect.isclass(part) else type(part)
    if issubclass(kind, (Part, Objective, Wrapper)):
        wanted += ["Shape:", "Use it"]
    if issubclass(kind, (Part, Objective, Wrapper, Selector)):
        named = inspect.signature(kind).parameters.values()
        conventional = ("reduction", "ignore_index")
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        wanted += ["Raises:", *(f"{p.name}:" for p in named if p.kind not in variadic and p.name not in conventional)]
    missing = [word for word in dict.fromkeys(wanted) if word not in text]
    missing = [word for word in missing if not (word == "math::" and ":math:" in text)]
    assert not missing, f"the docstring lacks {', '.join(missing)}"
    for key in papers:
        assert key in text, f"the docstring does not name its paper {key}"


def seeded(use: Use, part: Any) -> Any:
    """What comes of the part with torch's generator in one state, which is afterwards what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return use(part)


def quiet(part: Any, use: Use) -> None:
    """No prints and no warnings in normal use."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("error")
        seeded(use, copy.deepcopy(part))
    assert not printed.getvalue(), f"printed: {printed.getvalue()!r}"


def repeatable(part: Any, use: Use) -> None:
    """From one state and one state of torch's generator the same comes twice."""
    first, second = (seeded(use, copy.deepcopy(part)) for _ in range(2))
    same(second, first, "called again from one state")


def copies_the_same(part: Any, use: Use) -> None:
    """A deep copy and a pickled one of a part that was used go on as the part does."""
    used = copy.deepcopy(part)
    seeded(use, used)
    wanted = seeded(use, copy.deepcopy(used))
    same(seeded(use, pickle.loads(pickle.dumps(used))), wanted, "of a pickled part")


def state_round_trip(part: nn.Module, use: Use) -> None:
    """``state_dict`` carries all that a used part remembers into a fresh one."""
    used, fresh = copy.deepcopy(part), copy.deepcopy(part)
    seeded(use, used)
    fresh.load_state_dict(copy.deepcopy(used.state_dict()))
    same(seeded(use, fresh), seeded(use, used), "of a part that was given the state of the used one")


def no_hidden_state(part: Any, use: Use) -> None:
    """Nothing but buffers and parameters changes in ``train()`` mode, and nothing at all in ``eval()`` mode."""
    for training in (True, False):
        used = copy.deepcopy(part)
        modes = isinstance(used, nn.Module)
        if modes:
            used.train(training)
        before, plain = copy.deepcopy(used.state_dict()) if modes else {}, dict(_plain(used))
        seeded(use, used)
        changed = [name for name, value in _plain(used) if plain.get(name) != value]
        assert not changed, f"the plain attribute {changed[0]} changed when it was called: register it as a buffer"
        if modes and not training:
            for name, tensor in used.state_dict().items():
                assert_close(tensor, before[name], atol=0, rtol=0, equal_nan=True, msg=f"{name} changed in eval() mode")


def buffers_outlive_half(part: Any) -> None:
    """Counts, statistics and memories stay as they are where a part is cast to half precision with a model."""
    if not isinstance(part, nn.Module):
        return
    for dtype in (torch.float16, torch.bfloat16):
        cast = copy.deepcopy(part).to(dtype)
        held = dict(part.named_modules())
        for path, member in cast.named_modules():
            for name, buffer in member.named_buffers(recurse=False) if isinstance(member, Part) and member.role else ():
                before = held[path].get_buffer(name)
                where = f"{path}.{name}".lstrip(".")
                assert buffer.dtype == before.dtype, f"{where} is cast from {before.dtype} to {buffer.dtype}"
                assert torch.equal(buffer, before), f"{where} changed from {before.tolist()} to {buffer.tolist()}"


def _plain(part: Any) -> Iterator[tuple[str, str]]:
    """The plain attributes of a part and of all that is in it, as text."""
    internal = {*vars(nn.Module()), "_held_back"}
    members = part.named_modules() if isinstance(part, nn.Module) else [("", part)]
    for path, member in members:
        for name, value in getattr(member, "__dict__", {}).items():
            if name not in internal:
                yield f"{path}.{name}".lstrip("."), repr(value)


def torch_generator_left_alone(part: Any, use: Use) -> None:
    """A part that is not declared to draw leaves torch's generator where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        use(copy.deepcopy(part))
        assert torch.equal(torch.get_rng_state(), before), "it draws random numbers without declaring itself stochastic"


def float_hyperparameters(part: Any) -> dict[str, float]:
    """The constructor's arguments that the part holds as plain floats under the same name."""
    held: dict[str, float] = {}
    for name in inspect.signature(type(part).__init__).parameters:
        value = part.__dict__.get(name)
        if isinstance(value, float) and math.isfinite(value):
            held[name] = value
    return held


def required(part: Any) -> dict[str, Any] | None:
    """What the part was built with of the arguments that have no default; None where it doesn't hold all of them."""
    named = list(inspect.signature(type(part).__init__).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = [p.name for p in named if p.default is p.empty and p.kind not in variadic]
    return {name: getattr(part, name) for name in asked} if all(hasattr(part, name) for name in asked) else None


def hyperparameters_checked(part: Any) -> None:
    """A hyperparameter that is NaN raises an error that names it."""
    given, kind = required(part) or {}, type(part)
    for name in float_hyperparameters(part):
        expect_error(name, lambda changed={**given, name: math.nan}: kind(**changed))  # type: ignore[misc]


def same(got: Any, wanted: Any, where: str) -> None:
    """Raise unless all numbers in two results are the same to the last bit."""
    one, other = dict(leaves(got)), dict(leaves(wanted))
    assert one.keys() == other.keys(), f"{where} another structure comes"
    for name, value in one.items():
        truth = other[name]
        if isinstance(value, Tensor):
            assert_close(value, truth, atol=0, rtol=0, equal_nan=True, msg=partial(_other_numbers, where, name))
        else:
            assert value == truth or (value != value and truth != truth), f"{where} {name or 'it'} is {value}"


def _other_numbers(where: str, name: str, message: str) -> str:
    return f"{where} other numbers come{f' in {name}' if name else ''}: {message}"


def leaves(result: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors, numbers and words in a result of any structure, each with where it is."""
    if isinstance(result, Tensor):
        yield path, result.detach()
    elif isinstance(result, (np.ndarray, np.generic)):
        yield path, torch.as_tensor(np.asarray(result)) if np.asarray(result).dtype.kind in "biuf" else repr(result)
    elif isinstance(result, (bool, int, float, str, type(None))):
        yield path, result
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(result, (list, tuple)):
        for number, value in enumerate(result):
            yield from leaves(value, f"{path}.{number}")
    elif isinstance(result, nn.Module):
        yield from leaves({"training": result.training, **result.state_dict()}, path)
        yield from leaves({f"{name} grad": p.grad for name, p in result.named_parameters()}, path)
    elif isinstance(result, Optimizer):
        yield from leaves([group["params"] for group in result.param_groups], path)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        yield from leaves({field.name: getattr(result, field.name) for field in dataclasses.fields(result)}, path)
    elif isinstance(result, torch.Generator):
        yield path, result.get_state()
    elif hasattr(result, "__dict__") and not callable(result):
        yield from leaves(vars(result), path)
