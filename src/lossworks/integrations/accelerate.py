"""Objectives in a plain training loop with Hugging Face accelerate."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from lossworks.checks import check_int
from lossworks.integrations._checks import check_objective
from lossworks.objective import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["backward", "windows"]

Batch = TypeVar("Batch")


def backward(
    accelerator: "Accelerator",
    objective: Objective,
    model: nn.Module,
    parts: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
) -> Tensor:
    """Send the objective of one optimizer step backward, its batch given in parts; exact whatever their sizes.

    The gradients are those of one process with the whole batch, for every objective: a weighting or a loss that couples
    its rows is asked about all parts of all processes together, in a first pass without gradients. Processes exchange
    gradients once, with the last part.

    Args:
        accelerator: The ``Accelerator`` that prepared ``model``. What it divides by for
            ``gradient_accumulation_steps`` is made up for, as the parts add up already.
        objective: The :class:`~lossworks.Objective`.
        model: The prepared model, called on each part's ``x``.
        parts: As for :meth:`lossworks.Objective.micro_batches`: ``(x, target)``, or mappings with ``index``,
            ``group`` and ``sample_weight`` as well. At least one; under DDP and FSDP as many on each process.

    Returns:
        The objective on the whole batch, detached, the same on each process.

    Raises:
        TypeError: not an objective.
        ValueError: no parts, an argument in them that isn't known, or ``reduction="none"``.

    A step of a loop is then::

        for parts in windows(loader, 4):
            backward(accelerator, objective, model, parts)
            optimizer.step()
            optimizer.zero_grad()
    """
    check_objective(objective)
    parts = list(parts)
    if not parts:
        raise ValueError("parts must hold at least one micro-batch, of no rows if need be, got none")
    world = dist.group.WORLD if accelerator.num_processes > 1 else None
    values = objective.micro_batches(model, parts, process_group=world)
    detached = []
    for number in range(1, len(parts) + 1):
        # The forward pass, which `values` runs when it is asked, decides with the backward pass whether DDP syncs.
        with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(model):
            value = next(values)
            accelerator.backward(value * accelerator.gradient_accumulation_steps)
        detached.append(value.detach())
    return accelerator.reduce(sum(detached[1:], start=detached[0]), reduction="mean")


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` batches in a row; the last may be shorter.

    >>> list(windows("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    size = check_int("size", size, low=1)
    left = iter(batches)
    while window := list(itertools.islice(left, size)):
        yield window
