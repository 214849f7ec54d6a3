"""The checks of what has no role of its own: functions and objects, on the call that their docstring makes."""

import inspect
import math
import pickle
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor, nn

from lossworks.testing.calls import Call, named_arguments
from lossworks.testing.checks.every import leaves, same
from lossworks.testing.inputs import expect_error

__all__ = [
    "draws",
    "finite_gradient",
    "found_by_pickle",
    "has_numbers",
    "has_shapes",
    "has_tensors",
    "inputs_left_alone",
    "made",
    "names_a_bad_number",
    "names_a_bad_shape",
    "names_a_bad_tensor",
    "no_nan",
    "precision_kept",
    "quiet",
    "repeatable",
    "shapes_as_annotated",
    "torch_generator_left_alone",
]


def made(call: Call) -> Any:
    """What comes of the call, made on copies, and what became of the object whose method it is."""
    own = call.fresh()
    result = own.made()
    return [result, own.owner]


def quiet(call: Call) -> None:
    """No prints and no warnings in normal use."""
    assert not call.outcome.printed, f"printed: {call.outcome.printed!r}"
    assert not call.outcome.warned, f"warned: {call.outcome.warned[0]!r}"


def repeatable(call: Call) -> None:
    """From one state of torch's generator the same comes twice."""
    same(call.seeded(), call.outcome.result, "called again")


def torch_generator_left_alone(call: Call) -> None:
    """What does not say that it draws leaves torch's generator where it was."""
    assert not call.outcome.drew, "it draws random numbers without saying so"


def found_by_pickle(call: Call) -> None:
    """A function is sent to other processes by its name."""
    assert pickle.loads(pickle.dumps(call.function)) is call.function, "another function comes out of pickle"


def changes(call: Call) -> tuple[str, ...]:
    """The arguments that the function says it changes: the first of one whose name ends so, or as declared."""
    declared = getattr(call.function, "changes", ())
    first = tuple(named_arguments(call))[:1] if call.title.endswith("_") else ()
    return (*first, *declared)


def inputs_left_alone(call: Call) -> None:
    """Tensors, models and all else that it is given are afterwards what they were, but what it says that it changes."""
    for name, value in call.outcome.left.items():
        if name not in changes(call) and not callable_only(value):
            same(value, call.outcome.given[name], f"{name} was changed, where")


def callable_only(value: Any) -> bool:
    """Whether it is a function, of which nothing can be seen."""
    return callable(value) and not isinstance(value, nn.Module)


def draws(call: Call) -> bool:
    """Whether it says that it draws random numbers, by an argument or in a word."""
    said = inspect.getdoc(call.function) or ""
    owner = inspect.getdoc(type(call.owner)) or "" if call.owner is not None else ""
    names = {*inspect.signature(call.function).parameters, *getattr(call.owner, "__dict__", ())}
    own = any(getattr(value, "stochastic", False) for value in (call.owner, *named_arguments(call).values()))
    return own or "generator" in names or "draw" in said + owner


def shapes_as_annotated(call: Call) -> None:
    """What comes has the shape and the dtype that the signature says, with one size for each of its names."""
    annotations = inspect.signature(call.function).parameters
    with jaxtyped("context"):
        for name, value in call.outcome.given.items():
            _check_shape(name, value, annotations[name].annotation)
        _check_shape("the result", call.outcome.result, inspect.signature(call.function).return_annotation)


def _check_shape(name: str, value: Any, annotation: Any) -> None:
    wanted = [one for one in _alternatives(annotation) if _is_array(one)]
    if not wanted and typing.get_origin(annotation) is tuple and isinstance(value, tuple):
        inner = typing.get_args(annotation)
        if len(inner) == len(value):
            for number, (part, one) in enumerate(zip(value, inner, strict=True)):
                _check_shape(f"{name}[{number}]", part, one)
    if wanted and isinstance(value, (Tensor, np.ndarray)):
        fits = any(isinstance(value, one) for one in wanted)
        shape = f"{value.dtype} {tuple(value.shape)}"
        assert fits, f"{name} is {shape}, where the signature says {' or '.join(map(str, wanted))}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_array(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, AbstractArray)


def has_shapes(call: Call) -> bool:
    """Whether its signature says a shape of what it gives."""
    annotation = inspect.signature(call.function).return_annotation
    inner = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else _alternatives(annotation)
    return any(_is_array(one) for one in inner)


def no_nan(call: Call) -> None:
    """Nothing that comes is NaN."""
    for path, value in leaves(call.outcome.result):
        if isinstance(value, Tensor) and value.is_floating_point():
            assert not bool(value.isnan().any()), f"NaN comes{f' in {path}' if path else ''}"
        assert not (isinstance(value, float) and math.isnan(value)), f"NaN comes{f' in {path}' if path else ''}"


def precision_kept(call: Call) -> None:
    """Given everything in float64 it answers in float64, near what it answers to the example."""
    owner, arguments, columns = _in_dtype(_kept(call.fresh()), torch.float64)
    precise = replace(call, owner=owner, arguments=arguments, columns=columns).seeded()
    usual = dict(leaves(call.outcome.result))
    for path, value in leaves(precise):
        other = usual.get(path)
        if not isinstance(value, Tensor) or not isinstance(other, Tensor) or not value.is_floating_point():
            continue
        where = path.strip(".") or "the answer"
        assert value.dtype == torch.float64, f"{where} is in {value.dtype} where all that is given is in float64"
        if value.shape == other.shape and not draws(call):
            near = torch.isclose(value, other.double(), rtol=1e-3, atol=1e-4, equal_nan=True)
            assert bool(near.all()), f"{where} is {value.tolist()} in float64, {other.tolist()} in {other.dtype}"


def _kept(call: Call) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return call.owner, call.arguments, dict(call.columns)


def has_floats(call: Call) -> bool:
    """Whether anything that it is given has a precision."""
    if call.owner is not None and not isinstance(call.owner, nn.Module):
        return False
    given = [value for _, value in leaves([call.owner, *named_arguments(call).values()])]
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in given)


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        floating = value.is_floating_point()
        return value.detach().to(dtype).requires_grad_(value.requires_grad) if floating else value
    if isinstance(value, np.ndarray):
        return value.astype(str(dtype).removeprefix("torch.")) if value.dtype.kind == "f" else value
    if isinstance(value, nn.Module):
        return value.to(dtype)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_in_dtype(part, dtype) for part in value)
    if isinstance(value, dict):
        return {name: _in_dtype(part, dtype) for name, part in value.items()}
    return value


def has_tensors(call: Call) -> list[str]:
    """The arguments that are arrays."""
    return [name for name, value in named_arguments(call).items() if isinstance(value, (Tensor, np.ndarray))]


def names_a_bad_tensor(call: Call) -> None:
    """A word or complex numbers in the place of an array raise an error that names the argument."""
    for name in has_tensors(call):
        value = named_arguments(call)[name]
        shape = tuple(value.shape)
        wrong = torch.zeros(shape, dtype=torch.complex64) if isinstance(value, Tensor) else np.zeros(shape, complex)
        for bad in ("rows", wrong):
            expect_error(name, call.fresh().with_arguments({name: bad}).made)


def has_numbers(call: Call) -> list[str]:
    """The arguments that are floats by their signature."""
    parameters = inspect.signature(call.function).parameters
    return [name for name, p in parameters.items() if float in _alternatives(p.annotation) and p.default is not None]


def names_a_bad_number(call: Call) -> None:
    """NaN and a word in the place of a number raise an error that names the argument."""
    for name in has_numbers(call):
        for bad in (math.nan, "much"):
            expect_error(name, call.fresh().with_arguments({name: bad}).made)


def ranked(call: Call) -> Iterator[str]:
    """The arrays whose number of dimensions the signature says."""
    parameters = inspect.signature(call.function).parameters
    for name in has_tensors(call):
        arrays = [one for one in _alternatives(parameters[name].annotation) if _is_array(one)]
        if arrays and all("*" not in one.dim_str and "..." not in one.dim_str for one in arrays):
            yield name


def names_a_bad_shape(call: Call) -> None:
    """An array with a dimension too many raises an error that names it, or another that it must fit."""
    arrays = has_tensors(call)
    for name in ranked(call):
        value = named_arguments(call)[name]
        own = call.fresh().with_arguments({name: value[None]})
        try:
            own.made()
        except (ValueError, TypeError) as error:
            said = str(error)
            assert any(one in said for one in arrays), f"a bad {name} must be named, the error says: {error}"
            assert "\n" not in said, f"the error must be one line, it says: {error}"
        else:
            raise AssertionError(f"{name} with a dimension too many raised nothing")


def _differentiable(call: Call) -> dict[str, Tensor]:
    arrays = {name: named_arguments(call)[name] for name in has_tensors(call)}
    floats = {name: value for name, value in arrays.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {name: value.detach().clone().requires_grad_() for name, value in floats.items()}


def _flowing(call: Call) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Arrays that ask for a gradient, and what comes that has one."""
    own = call.fresh()
    given = _differentiable(own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = own.with_arguments(given).made()
    parts = result if isinstance(result, tuple) else (result,)
    return given, [part for part in parts if isinstance(part, Tensor) and part.requires_grad]


def takes_a_gradient(call: Call) -> bool:
    """Whether a gradient flows from an array to what comes."""
    if not _differentiable(call) or not any(isinstance(v, Tensor) for _, v in leaves(call.outcome.result)):
        return False
    try:
        return bool(_flowing(call)[1])
    except (RuntimeError, ValueError, TypeError):
        return False


def finite_gradient(call: Call) -> None:
    """The gradient from what comes to the arrays is finite."""
    given, parts = _flowing(call)
    for part in parts:
        gradients = torch.autograd.grad(part.sum(), list(given.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(given, gradients, strict=True):
            finite = gradient is None or bool(gradient.isfinite().all())
            assert finite, f"the gradient in {name} is not finite"
