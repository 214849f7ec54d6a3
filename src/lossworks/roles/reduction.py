"""Sums and means over rows, by torch's conventions."""

import torch
from torch import Tensor

from lossworks.checks import (
    readable,
)
from lossworks.distributed import ProcessGroup, sum_over_ranks, world_size

__all__ = ["REDUCTIONS", "check_no_nan", "weighted_reduction"]

REDUCTIONS = ("mean", "sum", "none")


def weighted_reduction(
    losses: Tensor,
    weights: Tensor | None,
    reduction: str,
    total: float | Tensor | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Reduce per-row losses as torch does: ``mean`` divides by the sum of the weights (rows kept), or by ``total``.

    A batch that is empty or ignored entirely has mean 0, with zero gradients. ``total`` is the whole batch's sum of
    weights when ``losses`` is one of its micro-batches, so that the means over micro-batches add up exactly; where it
    is 0, no row counts and the mean is 0 too. With a ``process_group`` whose ranks hold the other rows, the mean of the
    ranks' return values is the value of the whole batch.
    """
    weighted = losses if weights is None else losses * weights
    if reduction == "none":
        return weighted
    summed = weighted.sum()
    if process_group is not None:
        summed = summed * world_size(process_group)
    if reduction == "sum":
        return summed
    if total is not None:
        # A total of any dtype leaves the value in the losses' own dtype.
        total = total.to(summed.dtype) if isinstance(total, Tensor) else total
        return summed / (total + (total == 0))
    if weights is None and process_group is None:
        return summed / max(losses.numel(), 1)
    own = summed.new_tensor(losses.numel()) if weights is None else weights.sum()
    kept = sum_over_ranks(own, process_group)
    return summed / torch.where(kept > 0, kept, torch.ones_like(kept))


def check_no_nan(output: Tensor, losses: Tensor) -> None:
    """Raise an error that names the rows whose outputs are NaN; it looks at them only if a loss is not finite."""
    # A sum costs a tenth of looking at each loss, and can only be finite if all are.
    if readable(losses) and not bool(losses.detach().sum().isfinite()):
        rows = output.detach().isnan().reshape(output.shape[0], -1).any(dim=1).nonzero().flatten()
        if rows.numel():
            more = f" and {rows.numel() - 3} more" if rows.numel() > 3 else ""
            raise ValueError(f"output has NaN in row {', '.join(str(int(r)) for r in rows[:3])}{more}")
