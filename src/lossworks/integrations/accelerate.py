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
    """Call backward on the objective of one optimizer step, with its batch given in parts of any sizes; it is exact.

    The gradients are those of one process with the whole batch, for every objective: a weighting or a loss that couples
    its rows sees all parts of all processes together, in a first pass without gradients. Processes exchange gradients
    once, with the last part.

    Args:
        accelerator: The ``Accelerator`` that prepared ``model``. It divides losses by ``gradient_accumulation_steps``;
            this is undone here, as the parts already add up to the whole.
        objective: The :class:`~lossworks.Objective`.
        model: The prepared model, called on each part's ``x``.
        parts: As for :meth:`lossworks.Objective.micro_batches`: ``(x, target)``, or mappings with ``index``,
            ``group`` and ``sample_weight`` as well. At least one; under DDP and FSDP the same number on each process.

    Returns:
        The objective on the whole batch, detached and the same on each process.

    Raises:
        TypeError: ``objective`` is no :class:`~lossworks.Objective`.
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
        raise ValueError("parts must hold at least one micro-batch, which may have no rows, got none")
    world = dist.group.WORLD if accelerator.num_processes > 1 else None
    values = objective.micro_batches(model, parts, process_group=world)
    detached = []
    for number in range(1, len(parts) + 1):
        # `values` runs the forward pass when asked; forward and backward pass together decide whether DDP syncs.
        with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(model):
            value = next(values)
            accelerator.backward(value * accelerator.gradient_accumulation_steps)
        detached.append(value.detach())
    return accelerator.reduce(sum(detached[1:], start=detached[0]), reduction="mean")


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group batches into lists of ``size`` successive batches; the last list may be shorter.

    >>> list(windows("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    size = check_int("size", size, low=1)
    left = iter(batches)
    while window := list(itertools.islice(left, size)):
        yield window
