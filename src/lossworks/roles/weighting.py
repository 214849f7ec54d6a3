"""The role of a weighting of the rows."""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import (
    check_floating,
    check_same_shape,
    check_tensor,
)
from lossworks.roles.part import Part

__all__ = ["Weighting", "about_kept", "asked_once", "inseparable"]


class Weighting(Part):
    """Weights of the rows: non-negative, with mean 1 over the batch, or over the data set with ``over_data_set``.

    They have the losses' dtype; for losses in half precision they are float32, as one row can have a weight of n.

    Class attributes:
        over_data_set: Whether the mean of 1 is over the data set, so that a batch's own mean may differ. It keeps fixed
            weights exact when a batch is split.
        reads_losses: Whether the weights depend on the losses. If they don't, they are known before the losses are,
            which saves the fused form a pass.
        needs_target: Whether it must be given ``target=``.
        needs_group: Whether it must be given ``group=``.
    """

    over_data_set: ClassVar[bool] = False
    reads_losses: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False
    needs_group: ClassVar[bool] = False
    role = "weighting"

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of these rows."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(losses, ...) -> (n,)")

    def _given(self, weights: Tensor, losses: Tensor) -> Tensor:
        """The weights in the losses' dtype, or float32 for half precision, which ends below the weight of one row."""
        return weights.to(torch.promote_types(losses.dtype, torch.float32))

    def _required(self, name: str, value: Tensor | None, losses: Tensor) -> Tensor:
        """The argument, or an error unless it was given as one int64 number per row."""
        check_floating("losses", losses)
        if value is None:
            raise ValueError(f"{type(self).__name__} needs {name}=, one int64 number per row")
        check_tensor(name, value)
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}")
        check_same_shape(losses, value, names=("losses", name))
        return value


def asked_once(weights: Weighting) -> bool:
    """Whether the weighting must see the whole batch at once, or has a memory."""
    inside = [part for part in weights.modules() if isinstance(part, Part)]
    return not weights.over_data_set or any(part.couples_batch or part.memories for part in inside)


def about_kept(
    ask: Callable[[Tensor, dict[str, Tensor]], Tensor],
    losses: Float[Tensor, " n"],
    columns: dict[str, Tensor],
    kept: Tensor,
) -> Float[Tensor, " n"]:
    """The weights of the rows kept, for which alone ``ask`` is called, and 0 for the other rows.

    Under ``vmap`` and ``torch.compile`` rows can't be left out by their values, so ``ask`` is called for all rows.
    """
    if inseparable(losses):
        return ask(losses, columns)
    if bool(kept.all()):
        return ask(losses, columns)
    rows = kept.nonzero().flatten()
    found = ask(losses[rows], {name: column[rows] for name, column in columns.items()})
    return found.new_zeros(losses.shape).index_copy(0, rows, found)


def inseparable(rows: Tensor) -> bool:
    """Whether rows can't be left out by their values, as under ``vmap`` and ``torch.compile``."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(rows)
