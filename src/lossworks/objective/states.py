"""States that a pass must leave unchanged: modes, buffers and random generators."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from lossworks.roles import (
    Part,
    evaluating,
)

__all__ = ["Draws", "drawing", "on_copies", "resting"]


@contextlib.contextmanager
def resting(*models: object) -> Iterator[None]:
    """Put those that are modules in evaluation mode; at the end restore every module's mode."""
    for model in models:
        for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
            if isinstance(module, BatchNorm) and module.running_mean is None:
                raise ValueError(
                    f"model: {name or type(model).__name__} ({type(module).__name__}) keeps no running statistics, so "
                    "a row's risk depends on its batch and has no worst input of its own; give it "
                    "track_running_stats=True, or normalise each row by itself"
                )
    with evaluating(*models):
        yield


class Draws:
    """A snapshot of the states of torch's random generators, and of those that modules hold."""

    def __init__(self, x: Tensor, *modules: nn.Module) -> None:
        from torch.utils.checkpoint import get_device_states

        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(x)
        attributes = [value for module in modules for member in module.modules() for value in vars(member).values()]
        self.own = [(value, value.get_state()) for value in attributes if isinstance(value, torch.Generator)]


@contextlib.contextmanager
def drawing(draws: Draws | None) -> Iterator[None]:
    """Draw from the states in the snapshot; at the end restore the generators."""
    if draws is None:
        yield
        return
    from torch.utils.checkpoint import set_device_states

    with torch.random.fork_rng(devices=draws.devices):
        torch.set_rng_state(draws.cpu)
        set_device_states(draws.devices, draws.states)
        now = [(generator, generator.get_state()) for generator, _ in draws.own]
        for generator, state in draws.own:
            generator.set_state(state)
        try:
            yield
        finally:
            for generator, state in now:
                generator.set_state(state)


@contextlib.contextmanager
def on_copies(*modules: nn.Module) -> Iterator[None]:
    """Replace all buffers but memories (:func:`held_back` holds those) by copies; changes to the copies are lost."""
    held: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    for member in (member for module in modules for member in module.modules()):
        memories = member.memories if isinstance(member, Part) else ()
        held += [(member._buffers, name, buffer) for name, buffer in member._buffers.items() if name not in memories]
    copies = {buffer: None if buffer is None else buffer.clone() for _, _, buffer in held}
    try:
        for buffers, name, buffer in held:
            buffers[name] = copies[buffer]
        yield
    finally:
        for buffers, name, buffer in held:
            buffers[name] = buffer
