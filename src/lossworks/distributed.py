"""Gather, count and sum the rows of one batch that lie on several ranks, with their gradients.

Every function here is a collective: all ranks of the group call it, in the same order. A rank may have any number of
rows, or none. Gradients keep the convention of data-parallel training, where the gradient on the whole batch is
the *mean over ranks* of each rank's own: in the backward pass, gathered rows get the sum over ranks of the gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["ProcessGroup", "gather_rows", "own_rows", "replicated", "row_counts", "sum_over_ranks", "world_size"]


def world_size(process_group: ProcessGroup | None) -> int:
    """How many ranks share the batch; 1 without a group."""
    return 1 if process_group is None else dist.get_world_size(process_group)


def row_counts(rows: int, process_group: ProcessGroup, device: torch.device | None = None) -> list[int]:
    """How many rows each rank has."""
    own = torch.tensor([rows], dtype=torch.int64, device=device)
    each = [torch.empty_like(own) for _ in range(world_size(process_group))]
    dist.all_gather(each, own, group=process_group)
    return [int(count) for count in each]


def gather_rows(
    tensor: Shaped[Tensor, "n *rest"], process_group: ProcessGroup, counts: Sequence[int] | None = None
) -> Shaped[Tensor, "N *rest"]:
    """All ranks' rows in the order of the ranks, the same on each; each row's gradient goes back to the row's own rank.

    The backward pass is a collective too: it sums the gradients over ranks, and each rank takes those of its own rows.
    So where every rank computes the same number from the gathered rows, the mean over ranks of their gradients is that
    number's gradient, along which data-parallel training steps.

    Args:
        tensor: This rank's rows; all ranks agree on dtype and on all dimensions but the first.
        process_group: The ranks that take part.
        counts: The result of :func:`row_counts`, if it is known; otherwise the ranks are asked for it.
    """
    if tensor.ndim == 0:
        raise ValueError("tensor must have rows, got a single number")
    counts = row_counts(len(tensor), process_group, tensor.device) if counts is None else counts
    result = _GatherRows.apply(tensor, process_group, tuple(counts))
    assert isinstance(result, Tensor)
    return result


def own_rows(gathered: Tensor, process_group: ProcessGroup, counts: Sequence[int]) -> Tensor:
    """This rank's own rows among the gathered ones."""
    rank = dist.get_rank(process_group)
    first = sum(counts[:rank])
    return gathered[first : first + counts[rank]]


def replicated(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over ranks (as by FSDP), with its gradient; other tensors unchanged."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


def sum_over_ranks(number: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """The sum over ranks of a tensor of one shape on all of them, with its gradient; unchanged without a group."""
    if process_group is None:
        return number
    return gather_rows(number[None], process_group, [1] * world_size(process_group)).sum(dim=0, dtype=number.dtype)


def _all_gather(tensor: Tensor, process_group: ProcessGroup, counts: Sequence[int]) -> Tensor:
    most = max(counts)
    if tensor.dtype == torch.bool:
        return _all_gather(tensor.to(torch.uint8), process_group, counts).to(torch.bool)
    if most == 0:
        return tensor.clone()
    padded = torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])]).contiguous()
    each = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(each, padded, group=process_group)
    return torch.cat([rows[:count] for rows, count in zip(each, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(tensor: Tensor, process_group: ProcessGroup, counts: tuple[int, ...]) -> Tensor:
        return _all_gather(tensor, process_group, counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.process_group, ctx.counts = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _OwnRowsOfSum.apply(gradients[0], ctx.process_group, ctx.counts), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], tensor: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return _GatherRows.apply(tensor.movedim(in_dims[0], 1), *rest), 1


class _OwnRowsOfSum(torch.autograd.Function):
    """The backward pass of a gather; it has a gradient of its own, so that second derivatives are right."""

    @staticmethod
    def forward(gathered: Tensor, process_group: ProcessGroup, counts: tuple[int, ...]) -> Tensor:
        summed = gathered.contiguous().clone()
        dist.all_reduce(summed, group=process_group)
        return own_rows(summed, process_group, counts).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.process_group, ctx.counts = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _GatherRows.apply(gradients[0], ctx.process_group, ctx.counts), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], gathered: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return _OwnRowsOfSum.apply(gathered.movedim(in_dims[0], 1), *rest), 1
