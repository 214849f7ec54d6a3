"""Sums and means over rows, by torch's conventions."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossworks.checks import FLOATING, HALF, readable
from lossworks.distributed import ProcessGroup, sum_over_ranks, world_size

__all__ = ["REDUCTIONS", "absent_rows", "any_row", "check_no_nan", "cleared", "over_rows", "tame", "weighted_reduction"]

_TAME = 1e4
"""The largest absolute output at which every loss must be finite."""
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
    if losses.dtype in HALF:  # a sum over many rows would overflow, or lose digits
        losses = losses.float()
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
    own = summed.new_tensor(losses.numel()) if weights is None else weights.sum(dtype=summed.dtype)
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


def any_row(rows: Tensor) -> bool:
    """Whether some of these rows are marked; True where the values may not be read."""
    return not readable(rows) or bool(rows.any())


def absent_rows(sample_weight: Tensor | None, output: Tensor | None = None) -> Tensor | None:
    """The rows that count as absent, as their weight is 0, in the weights' shape; None if there are none.

    If the weights themselves require a gradient, which at a weight of 0 is that row's loss, only rows whose ``output``
    is not finite are absent, as their loss has no slope to offer.
    """
    if sample_weight is None or sample_weight.dtype not in FLOATING:
        return None
    absent = sample_weight.detach() == 0
    if not any_row(absent):
        return None
    if not _differentiated(sample_weight):
        return absent
    if not isinstance(output, Tensor):
        return None
    finite = output.detach().isfinite()
    while finite.ndim > absent.ndim:
        finite = finite.all(dim=1)
    return absent & ~finite


def over_rows(marked: Tensor, values: Tensor) -> Tensor:
    """Marks of rows, shaped so that they broadcast over the values of the rows, whose second axis may be of classes."""
    more = values.ndim - marked.ndim
    return marked.reshape(*marked.shape[:1], *(1,) * more, *marked.shape[1:])


def cleared(values: Tensor, marked: Tensor) -> Tensor:
    """The values with 0 in the marked rows, so that nothing that these hold reaches a value or a gradient."""
    return torch.where(over_rows(marked, values), 0, values) if any_row(marked) else values


def tame(values: Tensor, marked: Tensor) -> bool:
    """Whether the marked rows hold only numbers of which a loss and its slope are finite; reads nothing but these."""
    if not (readable(values) and readable(marked)):
        return False
    held = values.detach().index_select(0, marked.nonzero().flatten())
    return not held.numel() or all(abs(float(bound)) <= _TAME for bound in held.aminmax())


def _differentiated(rows: Tensor) -> bool:
    """Whether a derivative in these numbers is asked for, in reverse or in forward mode."""
    forward = forward_ad._current_level >= 0 and forward_ad.unpack_dual(rows).tangent is not None
    return forward or (rows.requires_grad and torch.is_grad_enabled())
