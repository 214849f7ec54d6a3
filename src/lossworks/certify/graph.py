"""A model as a graph of the few operations whose bounds are known."""

import importlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["Graph", "Step", "graph_of", "refresh_weights"]

Kind = Literal["input", "affine", "relu", "max", "add"]
Affine = Callable[[Tensor], Tensor]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
AFFINE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.Flatten, nn.Identity, *DROPOUTS),
)
NORMALISED = (nn.BatchNorm1d, nn.BatchNorm2d)
KNOWN = "Linear, Conv1d, Conv2d, BatchNorm, ReLU, max and average pooling, Flatten, Dropout, Identity and sums"


@dataclass(frozen=True)
class Step:
    """One operation of a model's graph.

    Attributes:
        name: The operation's name in the model.
        kind: The kind of operation.
        inputs: The numbers of the steps whose values it reads.
        module: The module that computes it, if a module does.
        affine: The function of an affine step.
        monotone: Whether an affine step has no negative coefficient, so that bounds can be passed through it directly.
    """

    name: str
    kind: Kind
    inputs: tuple[int, ...] = ()
    module: nn.Module | None = None
    affine: Affine | None = None
    monotone: bool = False


Graph = list[Step]


class _Proxy(fx.Proxy):
    """A traced value that records ``+=``, which writes in place, as another operation than ``+``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def graph_of(model: nn.Module) -> Graph:
    """The model's steps in order, the input first and the output last.

    Raises:
        TypeError: no module, or an operation that is not known; the error names it and says what to do.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    _check_hooks(modules)
    # A torch layer itself; a user's subclass is traced, as it may do anything in its forward.
    if isinstance(model, (*AFFINE, *NORMALISED, nn.ReLU, nn.MaxPool1d, nn.MaxPool2d)) and _is_torchs(model):
        return [Step("input", "input"), _of_module("model", model, 0)]
    try:
        traced = _Tracer().trace(model)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"model must be traceable by torch.fx, {type(model).__name__} is not ({reason}): write its forward without "
            f"branches on values"
        ) from error
    steps: Graph = []
    numbers: dict[fx.Node, int] = {}
    for node in traced.nodes:
        if node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node):
                raise TypeError(f"model must return one tensor, {type(model).__name__} returns {type(result).__name__}")
            if numbers[result] != len(steps) - 1:
                steps.append(Step("output", "affine", (numbers[result],), affine=lambda x: x, monotone=True))
            return steps
        step = _step(node, numbers, modules)
        numbers[node] = len(steps)
        steps.append(step)
    raise TypeError(f"model must return a tensor, {type(model).__name__} returns nothing")


def refresh_weights(model: nn.Module) -> None:
    """Compute weights anew that ``weight_norm`` and the older ``spectral_norm`` set before each forward pass.

    What they set in a pass that records gradients belongs to its graph, and cannot be copied.

    Raises:
        TypeError, ValueError: as :func:`graph_of`, for a model with other hooks, before any hook is called.
    """
    _check_hooks(dict(model.named_modules()))
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if type(hook) in _weight_hooks():
                    hook(module, ())


@cache
def _weight_hooks() -> tuple[type, type]:
    """The hooks that set a weight before a forward pass and change nothing else in evaluation mode."""
    modules = [importlib.import_module(f"torch.nn.utils.{name}") for name in ("weight_norm", "spectral_norm")]
    return modules[0].WeightNorm, modules[1].SpectralNorm


def _check_hooks(modules: dict[str, nn.Module]) -> None:
    """Raise where a hook, or a forward that replaces the layer's own, may compute something else than the layers do."""
    every = nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise TypeError(
            "model must be free of the global forward hooks of torch.nn.modules, which may change any value"
        )
    for name, module in modules.items():
        before = [type(hook) for hook in module._forward_pre_hooks.values()]
        if module._forward_hooks or any(kind not in _weight_hooks() for kind in before):
            raise TypeError(
                f"model must have no forward hooks, which may change any value, {name or 'model'!r} has: remove them"
            )
        if module.training and _weight_hooks()[1] in before:
            raise ValueError(
                f"model must be in evaluation mode, as {name or 'model'!r} changes its spectral norm in training"
            )
        if "forward" in vars(module):
            raise TypeError(
                f"model must compute what its layers do, the forward of {name or 'model'!r} is replaced on the "
                f"instance: define it in a class"
            )


def _step(node: fx.Node, numbers: dict[fx.Node, int], modules: dict[str, nn.Module]) -> Step:
    inputs = tuple(numbers[arg] for arg in node.args if isinstance(arg, fx.Node))
    if node.op == "placeholder":
        if numbers:
            raise TypeError(f"model must take one input, it also takes {node.name!r}")
        return Step(node.name, "input")
    module = modules[str(node.target)] if node.op == "call_module" else None
    _check_in_place(node, module, modules)
    if module is not None:
        return _of_module(str(node.target), module, inputs[0])
    called = node.target
    if called in (torch.relu, F.relu, "relu") and len(inputs) == 1:
        return Step(node.name, "relu", inputs)
    if called in (operator.add, torch.add, operator.iadd, "add") and len(inputs) == 2 and not node.kwargs:
        return Step(node.name, "add", inputs)
    if called in (torch.flatten, "flatten") and len(inputs) == 1:
        ends: dict[str, Any] = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        if ends.get("start_dim", 0) == 1 and all(isinstance(end, int) for end in ends.values()):
            return Step(node.name, "affine", inputs, affine=partial(torch.flatten, **ends), monotone=True)
    raise TypeError(
        f"model has an operation that is not certified, {node.name!r} ({_called(called)}): known are {KNOWN}; replace "
        f"it by one of these"
    )


def _check_in_place(node: fx.Node, module: nn.Module | None, modules: dict[str, nn.Module]) -> None:
    """Raise where an operation writes in place over a value that another one reads, as the graph cannot show that."""
    in_place = getattr(module, "inplace", False) or node.target is operator.iadd
    in_place = in_place or node.kwargs.get("inplace", False) or (node.target is F.relu and len(node.args) > 1)
    source = node.args[0] if node.args else None
    while in_place and isinstance(source, fx.Node):
        if len(source.users) > 1:
            raise TypeError(
                f"model writes over {source.name!r} in place ({node.name!r}) and reads it again, which is not "
                f"certified: use the operation that makes a new tensor"
            )
        same = modules.get(str(source.target)) if source.op == "call_module" else None
        alias = source.target in (torch.flatten, "flatten") or isinstance(same, (nn.Flatten, nn.Identity, *DROPOUTS))
        source = source.args[0] if alias and source.args else None


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn")


def _called(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _of_module(name: str, module: nn.Module, source: int) -> Step:
    if isinstance(module, nn.ReLU):
        return Step(name, "relu", (source,))
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d)):
        if module.return_indices:
            raise TypeError(f"model has {name!r} with return_indices, which cannot be certified")
        return Step(name, "max", (source,), module)
    if isinstance(module, DROPOUTS):
        if module.training:
            raise ValueError(f"model must not drop at random, {name!r} is in training mode: call model.eval()")
        return Step(name, "affine", (source,), module, lambda x: x, monotone=True)
    if isinstance(module, NORMALISED):
        return Step(name, "affine", (source,), module)
    if isinstance(module, AFFINE):
        weighted = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        if isinstance(module, nn.Flatten) and module.start_dim != 1:
            raise TypeError(f"model must flatten from axis 1 on, {name!r} does from {module.start_dim}")
        return Step(name, "affine", (source,), module, module, monotone=not weighted)
    raise TypeError(
        f"model has a layer that is not certified, {name!r} ({type(module).__name__}): known are {KNOWN}; replace it "
        f"by one of these"
    )
