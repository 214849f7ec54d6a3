"""Example inputs for a part, by what it says it takes, and instances of a part class that needs data."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lossworks.roles import BatchLoss, Loss
from lossworks.roles.wrapper import Wrapper

CLASSES = 5
ROWS = 12


class _Answers(nn.Module):
    """Logits of rows of any size in any dtype, of a model without weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Some of each class."""
        return x.flatten(1).mean(dim=1, keepdim=True) * torch.linspace(-1, 1, CLASSES, dtype=x.dtype, device=x.device)


def from_data(num_samples: int = ROWS, num_classes: int = CLASSES) -> dict[str, Any]:
    """What a constructor may ask of the training data, for a small made-up data set, and of the model's average."""
    counts = torch.arange(num_classes, 0, -1, dtype=torch.float64)
    return {
        "average": _Answers(),
        "class_counts": counts * 4,
        "num_classes": num_classes,
        "num_groups": 3,
        "num_samples": num_samples,
        "sample_weights": torch.linspace(0.5, 1.5, num_samples, dtype=torch.float64),
        "v_min": -3.0,
        "v_max": 3.0,
    }


def build(part: type[Any], setting: Mapping[str, Any] | None = None, **overrides: Any) -> Any:
    """An instance of a part class, its data arguments filled in."""
    facts = from_data()
    return part(**{name: facts[name] for name in part.needs}, **(setting or {}), **overrides)


def driven(part: Any) -> tuple[Mapping[str, Any], ...]:
    """Every setting in which the contract drives a part: those worth trying, and its further modes."""
    return (*getattr(part, "settings", ({},)), *getattr(part, "modes", ()))


def instances(part: Any) -> Iterator[Any]:
    """One instance for each setting that the contract drives."""
    for setting in driven(part):
        yield build(part, setting)


@dataclass(frozen=True)
class Recipe:
    """A wrapper of an optimizer in one of its settings; made by a function of the optimizer where one is given."""

    wrapper: type[Wrapper]
    setting: Mapping[str, Any]
    factory: Callable[[Optimizer], Wrapper] | None = None

    def build(self, optimizer: Optimizer, model: nn.Module) -> Wrapper:
        """The wrapper around an optimizer of this model."""
        if self.factory is not None:
            return self.factory(optimizer)
        given = {"model": model} if "model" in inspect.signature(self.wrapper.__init__).parameters else {}
        return self.wrapper(optimizer, **given, **self.setting)

    def hyperparameters(self) -> list[str]:
        """The names of the constructor's arguments beside the optimizer."""
        return list(inspect.signature(self.wrapper.__init__).parameters)[2:]


def take_step(optimizer: Wrapper, model: nn.Module, x: Tensor, backward: Callable[[], Tensor]) -> Tensor:
    """One step in the form that this optimizer has it.

    Args:
        optimizer: What steps.
        model: Its model.
        x: The rows of the step.
        backward: The loss, after its ``backward``.
    """

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward()

    step: Any = optimizer.step  # each has its own arguments
    if optimizer.takes_outputs:
        value: Tensor = step(lambda: model(x))
    else:
        value = step(closure, x=x) if reads_rows(type(optimizer)) else step(closure)
    return value


def reads_rows(wrapper: type[Wrapper]) -> bool:
    """Whether a step of the wrapper takes the rows ``x=`` too, of a model that gives one number a row."""
    return "x" in inspect.signature(wrapper.step).parameters


def example(
    loss: Loss | BatchLoss, rows: int = ROWS, *, dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Outputs, targets and further arguments that the loss takes."""
    generator = torch.Generator().manual_seed(seed)
    output, target = loss.kind.example(rows, CLASSES, dtype, generator, outputs=loss.output_size(CLASSES))
    return scale * output, target, {"index": torch.arange(rows)} if loss.needs_index else {}


def expect_error(name: str, call: Callable[[], object]) -> None:
    """Assert that the call raises a one-line ``ValueError`` or ``TypeError`` that names the argument."""
    try:
        call()
    except (ValueError, TypeError) as error:
        assert name in str(error), f"the error must name {name!r}, it says: {error}"
        assert "\n" not in str(error), f"the error must be one line, it says: {error}"
    else:
        raise AssertionError(f"a bad {name} raised nothing")
