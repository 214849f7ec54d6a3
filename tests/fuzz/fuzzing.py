"""Random inputs for whatever the package offers, and what may become of them."""

import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor, nn

import lossworks

ACCEPTED, REFUSED = "accepted", "refused"
LONGEST = 1000
WORDS = ("mean", "sum", "none", "average", "ordinal", "exact", "borda", "inverse", "effective", "one_step", "l1_mean")


# What may become of an input


def attempt(call: Callable[[], Any], names: Iterable[str], *also: type[Exception]) -> Any:
    """The call's result, or the documented error: one line that names an argument and was raised by lossworks."""
    try:
        return call()
    except (ValueError, TypeError, *also) as error:
        check_error(error, names)
        return error


def check_error(error: Exception, names: Iterable[str] = ()) -> None:
    """Assert that the error is fit for a user."""
    message = str(error.args[0]) if error.args else ""
    assert message, f"{type(error).__name__} says nothing"
    if not isinstance(error, (ValueError, TypeError)):
        return
    assert message.isprintable() or not re.search(r"[\n\r\v\f\x1b\u2028\u2029]", message), f"not one line: {message!r}"
    assert len(message) <= LONGEST, f"{len(message)} characters: {message[:200]!r}"
    names = list(names)
    assert not names or any(re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", message) for name in names), (
        f"none of the arguments {names} is named: {message}"
    )


def outcome(result: Any) -> str:
    return REFUSED if isinstance(result, Exception) else ACCEPTED


# Values

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)
FILLS = ("normal", "normal", "small", "classes", "zeros", "huge", "nan", "inf", "negative")


def filled(shape: Sequence[int], dtype: torch.dtype, fill: str, seed: int) -> Tensor:
    """A tensor of that shape and dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if fill == "classes":
        values = torch.randint(0, 3, tuple(shape), generator=generator).double()
    elif fill in ("zeros", "huge", "small"):
        values = values * {"zeros": 0, "huge": 1e30, "small": 0.1}[fill]
    elif fill in ("nan", "inf") and values.numel():
        values.flatten()[seed % values.numel()] = float(fill)
    elif fill == "negative":
        values = -values.abs() - 1
    if not (dtype.is_floating_point or dtype.is_complex):
        values = values.nan_to_num().clamp(-1e9, 1e9).round()
    return values.to(dtype)


seeds = st.integers(0, 2**16)
shapes = st.lists(st.integers(0, 4), max_size=4)
tensors = st.builds(filled, shapes, st.sampled_from(DTYPES), st.sampled_from(FILLS), seeds)
numbers = st.one_of(
    st.floats(-3, 3),
    st.integers(-2, 60),
    st.floats(),
    st.sampled_from([10**3, 2**31, 2**63, 10**400, -(10**18), 1e-300, 1e300, 5e-324]),
)
scalars = st.builds(
    lambda value, dtype: torch.tensor(value, dtype=dtype),
    st.floats(-3, 3) | st.sampled_from([float("nan"), float("inf"), 0.0, 1e30]),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
texts = st.text(max_size=6) | st.sampled_from(WORDS)
junk = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    texts,
    scalars,
    tensors,
    st.sampled_from([b"x", 1j, [], [1.0, "a"], {}, object(), np.float32(1), np.arange(3), range(3), {1}, int, len]),
)

WORK = (
    "budget",
    "iterations",
    "local_steps",
    "n",
    "n0",
    "num_samples",
    "pool_size",
    "q",
    "restarts",
    "rounds",
    "steps",
)
"""Arguments that say how much to do: of so many as 2**31 no error comes, but the answer after years."""
little = junk.filter(lambda value: not isinstance(value, int) or value <= 1000)


def any_of(mostly: st.SearchStrategy, otherwise: st.SearchStrategy, share: int = 4) -> st.SearchStrategy:
    """``mostly``, and once in ``share`` times ``otherwise``."""
    return st.integers(0, share - 1).flatmap(lambda number: mostly if number else otherwise)


CHANGES: tuple[tuple[str, Callable[[Tensor, int], Any]], ...] = (
    ("another dtype", lambda t, s: filled(t.shape, DTYPES[s % len(DTYPES)], "classes", s)),
    ("a column more", lambda t, s: t.unsqueeze(s % (t.ndim + 1))),
    ("a dimension less", lambda t, s: t.flatten() if s % 2 else t.reshape(-1)[: t.shape[0] if t.ndim else 1]),
    ("fewer rows", lambda t, s: t[: s % 3] if t.ndim else t),
    ("transposed", lambda t, s: t.mT if t.ndim > 1 else t),
    ("NaN", lambda t, s: _with(t, float("nan"), s)),
    ("infinite", lambda t, s: _with(t, float("-inf" if s % 2 else "inf"), s)),
    ("huge", lambda t, s: t * 10**9 if t.dtype == torch.int64 else t * 1e9 if t.is_floating_point() else t),
    ("negative", lambda t, s: -t - 1 if t.dtype != torch.bool else ~t),
    ("plus three", lambda t, s: t + 3 if t.dtype != torch.bool else t),
    ("half", lambda t, s: t.half() if t.is_floating_point() else t.int()),
    ("strided", lambda t, s: torch.stack([t, t], dim=-1)[..., 0]),
    ("with a gradient", lambda t, s: t.clone().requires_grad_() if t.is_floating_point() else t),
    ("an array", lambda t, s: t.detach().numpy() if t.dtype != torch.bfloat16 else t.tolist()),
    ("a list", lambda t, s: t.tolist()),
    ("sparse", lambda t, s: t.to_sparse()),
    ("nothing", lambda t, s: None),
    ("a number", lambda t, s: 1.5),
    ("words", lambda t, s: "mean"),
)


def _plain(tensor: Tensor) -> bool:
    """Whether the tensor can itself be worked with."""
    return tensor.layout is torch.strided and tensor.dtype not in (torch.complex64, torch.float8_e4m3fn)


def _with(tensor: Tensor, value: float, seed: int) -> Tensor:
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    changed = tensor.clone().flatten()
    changed[seed % len(changed)] = value
    return changed.reshape(tensor.shape)


def changed(arguments: dict[str, Any], changes: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """The arguments with a few of them spoiled."""
    names = sorted(arguments)
    arguments = dict(arguments)
    for which, how, seed in changes:
        name = names[which % len(names)]
        if isinstance(arguments[name], Tensor) and _plain(arguments[name]):
            arguments[name] = CHANGES[how][1](arguments[name], seed)
    return arguments


spoils = st.lists(st.tuples(st.integers(0, 9), st.integers(0, len(CHANGES) - 1), seeds), max_size=3)


# Arguments from a signature


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a caller gives."""
    found = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in found.items() if name != "self" and p.kind not in skipped}


def shaped(annotation: Any) -> list[tuple[str, str]]:
    """The kinds of numbers and the dimensions that an annotation of jaxtyping's names, if it does."""
    found = []
    for one in (annotation, *typing.get_args(annotation)):
        if hasattr(one, "dim_str"):
            named = one.dtypes if isinstance(one.dtypes, (list, tuple)) else ["any"]
            kind = "int" if all("int" in name for name in named) else "float"
            found.append((kind, one.dim_str))
    return found


@st.composite
def _like(draw: Any, name: str, annotation: Any, sizes: dict[str, int]) -> Any:
    """What fits the annotation, with dimensions of one name of one size."""
    kind, dims = draw(st.sampled_from(shaped(annotation)))
    shape: list[int] = []
    for dim in dims.split():
        if dim.startswith("*"):
            shape += [sizes.setdefault(dim, draw(st.integers(1, 4)))] * draw(st.integers(0, 1))
        else:
            shape.append(int(dim) if dim.isdigit() else sizes.setdefault(dim, draw(st.integers(0, 4))))
    tensor = filled(shape, torch.int64 if kind == "int" else torch.float64, "classes", draw(seeds))
    if kind == "float":
        tensor = filled(shape, torch.float64, draw(st.sampled_from(FILLS[:5])), draw(seeds))
        if "prob" in name and tensor.ndim:
            tensor = tensor.softmax(-1) if tensor.ndim > 1 else tensor.sigmoid()
    whole = annotation if not hasattr(annotation, "dim_str") else typing.get_args(annotation)
    return tensor.numpy() if "ndarray" in str(whole) and draw(st.booleans()) else tensor


def value_of(name: str, parameter: inspect.Parameter, sizes: dict[str, int], data: dict[str, Any]) -> st.SearchStrategy:
    """What a parameter may be given: mostly of its kind."""
    annotation, written = parameter.annotation, str(parameter.annotation)
    if name in data:
        return st.just(data[name])
    if shaped(annotation):
        many = "Sequence" in written
        one = _like(name, annotation, sizes)
        return st.lists(one, max_size=3) if many else one
    if "bool" in written:
        return st.booleans()
    if "int" in written and "float" not in written:
        return st.integers(-1, 12)
    if "float" in written and "Sequence" in written:
        return st.lists(st.none() | st.floats(0, 1) | st.floats(), max_size=5)
    if "float" in written:
        return st.floats(0, 3) | numbers | scalars
    if "Module" in written or name == "model":
        return st.sampled_from([nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))])
    if "Iterable[str]" in written:
        return st.lists(texts, max_size=4)
    if "tuple[str" in written:
        return st.tuples(texts, texts)
    if "str" in written:
        return texts
    if "torch.Size" in written:
        return shapes.map(torch.Size)
    if "Tensor" in written:
        return tensors
    return junk


@st.composite
def arguments(
    draw: Any, function: Callable[..., Any], data: dict[str, Any] | None = None, anything: Sequence[str] | None = None
) -> Any:
    """Keyword arguments for the function; each may be left out where it has a default, or be anything at all.

    ``data`` are values of some, ``anything`` the names of those that may be anything: all unless said.
    """
    sizes: dict[str, int] = {}
    given = {}
    for name, parameter in parameters(function).items():
        optional = parameter.default is not inspect.Parameter.empty
        if optional and name not in (data or {}) and draw(st.booleans()):
            continue
        mostly, otherwise = value_of(name, parameter, sizes, data or {}), little if name in WORK else junk
        given[name] = draw(any_of(mostly, otherwise, 6) if anything is None or name in anything else mostly)
    return changed(given, draw(spoils)) if given and anything is None and draw(st.booleans()) else given


# What there is to drive

UNDRIVEN = {
    "testing": "assertions about parts, which raise AssertionError",
    "comparison": "trains; its readers, models and command line are driven one by one",
    "runs": "its journal and run folder are driven one by one",
    "cli": "driven as a command line",
    "sklearn": "scikit-learn's own checks of estimators drive it",
    "report": "draws plain data that compare made; hostile names are driven in the report's tests",
}
"""The modules whose public functions are not driven by their signatures, and why."""
HELPERS = {
    "lossworks.checks.as_float": "asked of numbers alone, after the checks",
    "lossworks.checks.check_function": "called with words of ours",
    "lossworks.checks.precise": "asked of a tensor's device alone",
    "lossworks.checks.readable": "asked of tensors alone, after the checks",
    "lossworks.checks.taken": "a context around a user's code",
    "lossworks.objective.micro_batches.arguments_of": "names its argument as its caller does: parts",
    "lossworks.roles.kinds.declare_kind": "called where a class is made",
    "lossworks.optim.steps.gathered": "of gradients that the optimizers have checked",
    "lossworks.optim.steps.maximised": "of optimizers that the wrappers have checked",
    "lossworks.optim.steps.norm_of": "of gradients that the optimizers have checked",
    "lossworks.optim.steps.towards": "of parameters that the optimizers have checked",
    "lossworks.checks.number": "of numbers that were measured",
    "lossworks.checks.wide": "of tensors that its callers have checked",
    "lossworks.roles.part.cite": "a decorator for authors",
    "lossworks.roles.reduction.weighted_reduction": "reduces what the losses have checked",
}
"""Public functions that are not driven by themselves, and why."""


@functools.cache
def public() -> dict[str, Any]:
    """Every public name of every module of the package that is not left out, by its path."""
    found: dict[str, Any] = {}
    for info in pkgutil.walk_packages(lossworks.__path__, "lossworks."):
        top = info.name.split(".")[1]
        if top in UNDRIVEN or any(piece.startswith("_") for piece in info.name.split(".")):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            continue
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if callable(thing) and getattr(thing, "__module__", "").startswith("lossworks"):
                found.setdefault(f"{thing.__module__}.{thing.__qualname__}", thing)
    return dict(sorted(found.items()))


INTERNAL = (
    "lossworks.roles.wrapper.",
    *(f"lossworks.fused.{name}." for name in ("gpu", "kernels", "parallel", "rows", "softmax")),
    *("lossworks.distributed.", "lossworks.roles.memory.", "lossworks.perturb.ball.", "lossworks.weights.worst_case."),
    "lossworks.federated.rounds.check_",
    *("lossworks.roles.weighting.a", "lossworks.roles.part.evaluating", "lossworks.roles.remember."),
    *("lossworks.roles.reduction.check_no_nan", "lossworks.objective.states.", "lossworks.verdict.judge."),
    *(f"lossworks.roles.reduction.{name}" for name in ("absent_rows", "cleared", "over_rows", "tame")),
    *(
        "lossworks.roles.batch_loss.present_rows",
        "lossworks.perturb.inference.",
        "lossworks.certify.graph.refresh_weights",
        "lossworks.objective.formula.Featured",
    ),
)
"""What other modules of ours alone call, and what all ranks of a process group must call together."""

UNTRIED: tuple[str, ...] = ("lossworks.integrations.",)
"""Driven by their libraries' own trainers in `tests/integrations`: their arguments are those libraries' objects."""


def functions() -> dict[str, Callable[..., Any]]:
    """Every public function."""
    return {
        path: thing
        for path, thing in public().items()
        if inspect.isfunction(thing) and path not in HELPERS and not path.startswith((*INTERNAL, *UNTRIED))
    }


def modules() -> dict[str, type[nn.Module]]:
    """Every public module that can be built: the parts, and what else is one."""
    return {
        path: thing
        for path, thing in public().items()
        if inspect.isclass(thing)
        and issubclass(thing, nn.Module)
        and not _is_role(thing)
        and not path.startswith((*INTERNAL, *UNTRIED))
    }


def _is_role(thing: type) -> bool:
    return thing.__module__.startswith("lossworks.roles.") or thing.__module__.endswith(".worst_case")
