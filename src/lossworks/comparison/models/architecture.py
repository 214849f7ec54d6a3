"""The architectures that ``compare`` trains: three built-in ones, and any that a factory of the user's builds."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from math import gcd, prod
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lossworks.checks import InputError, check_bool, check_choice, check_int, nearest, shown
from lossworks.comparison.models.scaling import Scaler, Scaling
from lossworks.roles import CLASSES, KINDS, Kind
from lossworks.runs.memory import is_out_of_memory

__all__ = ["ARCHITECTURES", "Architecture", "Factory", "architecture_of"]

Factory = Callable[[tuple[int, ...], int], nn.Module]
ARCHITECTURES = ("mlp", "linear", "cnn")
GIVEN = "as --model FILE.py:FUNCTION (in Python factory=)"
"""How the user passes a factory when a trained model is loaded, for error messages."""


@dataclass(frozen=True)
class Architecture:
    """The architecture of a model: a scaler, a network, and a head that reads the network's outputs.

    Args:
        model: ``"mlp"`` (two hidden layers with ReLU), ``"linear"``, ``"cnn"`` (for ``(c, h, w)`` inputs), or a factory
            ``(input_shape, outputs) -> nn.Module`` whose module maps ``(n, *input_shape)`` to ``(n, outputs)``.
        width: The number of hidden units in each layer of the MLP, or of channels of the CNN.
        scaling: How the inputs are scaled: ``"robust"`` for tables, ``"standard"`` for arrays.
        generic: If true, the network is differentiated by autograd even if a hand-written gradient exists.
        input_shape: The shape of one row; :meth:`sized` fills it in when the data is known.
        outputs: The number of outputs that the loss needs.
        kind: The kind of target that the loss takes.
    """

    model: str | Factory = "mlp"
    width: int = 64
    scaling: Scaling = "robust"
    generic: bool = False
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    kind: Kind = CLASSES

    def __post_init__(self) -> None:
        check_int("width", self.width, low=1)
        if isinstance(self.model, str) and self.model not in ARCHITECTURES:
            known = ", ".join(map(repr, ARCHITECTURES))
            hint = nearest(self.model, ARCHITECTURES)
            raise ValueError(f"model must be one of {known} or a factory, got {self.model!r}{hint}")

    @property
    def layered(self) -> bool:
        """Whether the network is linear layers with ReLU between them, for which the engine has a written gradient."""
        return self.model in ("mlp", "linear") and not self.generic

    def described(self) -> str:
        """Describe the architecture in words."""
        if not isinstance(self.model, str):
            return "a model of your own"
        hidden = {
            "mlp": f"two hidden layers of {self.width}",
            "linear": "no hidden layer",
            "cnn": f"{self.width} channels",
        }
        return f"{self.model}, {hidden[self.model]}"

    def sized(self, input_shape: tuple[int, ...], outputs: int, kind: Kind = CLASSES) -> "Architecture":
        """The same architecture with the sizes that the data and the loss need."""
        return replace(self, input_shape=input_shape, outputs=outputs, kind=kind)

    def network(self) -> nn.Module:
        """Build a newly initialised network, without scaler and head."""
        if not isinstance(self.model, str):
            return _built(self.model, self.input_shape, self.outputs)
        if self.model == "cnn":
            return _cnn(self.input_shape, self.outputs, self.width)
        hidden = [self.width, self.width] if self.model == "mlp" else []
        sizes = [prod(self.input_shape), *hidden, self.outputs]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def empty_module(self, head: nn.Module) -> nn.Sequential:
        """Build the whole module (scaler, network, head) with placeholder values, into which a state is loaded."""
        shape = (self.input_shape[0],) + (1,) * (len(self.input_shape) - 1)
        scaling: Scaling = "standard" if len(self.input_shape) > 1 else self.scaling
        scaler = Scaler(torch.zeros(shape), torch.ones(shape), scaling)
        return nn.Sequential(scaler, self.network(), head)

    def loaded(self, state: Mapping[str, Tensor], make_head: Callable[[Kind, int], nn.Module]) -> nn.Sequential:
        """Build the whole module with the values of a saved state.

        A built-in network is allocated only after the values are known to fit. ``make_head`` builds the head for a kind
        of target and a number of outputs.

        Raises:
            InputError: the user's factory fails, or its network is not the one that was trained.
            ValueError, RuntimeError: the values do not fit the built-in network.
        """
        own = isinstance(self.model, str)
        with torch.device("meta" if own else "cpu"):
            module: nn.Sequential = self.empty_module(make_head(self.kind, self.outputs))
        try:
            for name, tensor in module.state_dict().items():
                if name in state and state[name].dtype != tensor.dtype:
                    raise ValueError(f"{name} must be {tensor.dtype}, got {state[name].dtype}")
            module.load_state_dict(state, assign=own)
        except (RuntimeError, ValueError) as error:
            if own:
                raise
            raise InputError(
                f"model: the network of {_named(self.model)} is not the one that was trained "
                f"({' '.join(str(error).split())}): give the same factory {GIVEN}"
            ) from error
        return module

    def to_json(self) -> dict[str, Any]:
        """Describe the architecture as JSON values; a factory becomes ``"factory"``, because its code is not saved."""
        return asdict(self) | {
            "model": self.model if isinstance(self.model, str) else "factory",
            "kind": self.kind.name,
            "input_shape": list(self.input_shape),
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Any], *, factory: Factory | None = None) -> "Architecture":
        """Rebuild the architecture that :meth:`to_json` described.

        Raises:
            ValueError: a field is unknown, missing or of the wrong type.
            InputError: ``factory`` is missing or is not callable, or the model was not built by a factory.
        """
        known = {field.name for field in fields(cls)}
        if strange := sorted(set(described) ^ known):
            raise ValueError(f"architecture has{' not' * (strange[0] in known)} the field {shown(strange[0])}")
        model, shape = described["model"], described["input_shape"]
        for name, allowed in (("scaling", get_args(Scaling)), ("kind", KINDS)):
            check_choice(name, described[name], allowed)
        check_bool("generic", described["generic"])
        check_int("outputs", described["outputs"], low=1)
        if not isinstance(shape, list) or len(shape) not in (1, 3):
            raise ValueError(f"input_shape must be [d] or [c, h, w], got {shown(shape)}")
        for size in shape:
            check_int("input_shape", size, low=1)
        if not isinstance(model, str):
            raise ValueError(f"model must be a name, got {shown(model)}")
        if model == "factory":
            if factory is None:
                raise InputError(f"the model was built by a factory of your own: give it again {GIVEN}")
            if not callable(factory):
                raise InputError(f"model: give the factory that the run was trained with {GIVEN}, got {shown(factory)}")
            model = factory
        elif factory is not None:
            raise InputError(f"the model is {shown(model)}, of no factory: leave --model (in Python factory=) out")
        return cls(**{**described, "model": model, "input_shape": tuple(shape), "kind": KINDS[described["kind"]]})


def architecture_of(model: str | Factory, features: Any) -> Architecture:
    """The architecture for these features; a frame is scaled robustly, an array by its mean and standard deviation."""
    array = isinstance(features, np.ndarray)
    if model == "cnn" and not (array and features.ndim == 4):
        raise InputError("model 'cnn' needs images, X of shape (n, c, h, w); use 'mlp' or 'linear'")
    try:
        return Architecture(model, scaling="standard" if array else "robust")
    except ValueError as error:
        raise InputError(str(error)) from error


def _built(factory: Factory, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build the network by the user's factory; raise if the factory fails."""
    called = f"model: {_named(factory)}({input_shape}, {outputs})"
    try:
        network = factory(input_shape, outputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"{called} fails ({type(error).__name__}: {reason})") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{called} must give a torch.nn.Module, got {shown(network)}")
    return network


def _named(factory: str | Factory) -> str:
    return str(getattr(factory, "__name__", "the factory"))


def _cnn(input_shape: tuple[int, ...], outputs: int, width: int) -> nn.Module:
    if len(input_shape) != 3:
        raise ValueError(f"model 'cnn' needs inputs of shape (c, h, w), got {input_shape}: use 'mlp' or 'linear'")
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for stride, wanted in ((1, max(width // 2, 1)), (2, width), (2, width)):
        layers += [
            nn.Conv2d(channels, wanted, 3, stride=stride, padding=1),
            nn.GroupNorm(gcd(wanted, 8), wanted),
            nn.ReLU(),
        ]
        channels = wanted
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, outputs))
