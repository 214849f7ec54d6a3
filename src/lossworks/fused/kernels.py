"""Triton kernels of the softmax family: a row's statistics and its gradient, in place on a chunk of logits.

Why they work on a chunk of logits, and the matrix product is not fused: forward and backward need three products of
``2 n C d`` operations, and everything else is ``O(n C)``. A kernel that never writes a logit needs a fourth product, as
the backward pass must compute the logits again, and all four products then run in a kernel of our own and not in the
library's. That adds a third to the only cost that counts, and saves only a buffer whose size can be chosen freely. So
the library computes the products, ``chunk`` rows at a time, and one program per row does the rest in place: one pass
reads the row for its maximum, its mass and its label, and another reads it again and writes the gradient there. For
``r`` rows in half precision this is ``6 r C`` bytes of traffic.

How large a chunk should be: it takes ``2 r C`` bytes in half precision, and each chunk reads and writes the weight's
gradient once, ``4 C d`` bytes beside the ``2 r C d`` operations of its product. A device that does b operations in the
time of one byte hides that traffic from ``r = 2 b`` rows on, some four to six hundred on today's devices. A thousand
rows should be close to the time of the three products alone. Fewer rows trade time for memory; a form that never holds
logits would need less memory by one chunk. Where a row's upstream gradient is known only later (``reduction="none"``,
a weighting) the fourth product is computed, and only there.

The module is imported only for tensors on a GPU, or with ``TRITON_INTERPRET=1``, which runs the kernels slowly on the
CPU. The tests do so, and there the kernels agree with the forms in torch. They compile for GPUs, but have not yet been
run or measured on one.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["row_gradient_", "row_statistics"]

_LARGEST_BLOCK = 8192


@triton.jit
def _statistics(
    logits: tl.tensor,
    stride: tl.tensor,
    classes: tl.tensor,
    target: tl.tensor,
    handicap: tl.tensor,
    offset: tl.tensor,
    scale: tl.tensor,
    maximum_out: tl.tensor,
    mass_out: tl.tensor,
    own_out: tl.tensor,
    total_out: tl.tensor,
    HANDICAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(target + row)
    shift = tl.load(handicap + row) if HANDICAP else 0.0
    factor = tl.load(scale) if SCALE else 1.0
    begin = logits + row * stride
    maximum = tl.full((), -float("inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    below = tl.full((), 0.0, tl.float32)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < classes
        score = tl.load(begin + column, mask=inside, other=-float("inf")).to(tl.float32) * factor
        if OFFSET:
            score += tl.load(offset + column, mask=inside, other=0.0)
        if HANDICAP:
            score += tl.where(column == label, shift, 0.0)
        top = tl.maximum(maximum, tl.max(score, axis=0))
        # Against a maximum of -inf every difference would be NaN.
        anchor = tl.where(top == -float("inf"), 0.0, top)
        mass = mass * tl.exp(maximum - anchor) + tl.sum(tl.exp(score - anchor), axis=0)
        if TOTAL:
            rise = tl.where(start == 0, 0.0, anchor - maximum) * start
            below += rise + tl.sum(tl.where(inside, anchor - score, 0.0), axis=0)
        maximum = top
    tl.store(maximum_out + row, maximum)
    tl.store(mass_out + row, mass)
    if label >= 0:
        score_of_label = tl.load(begin + label).to(tl.float32) * factor + shift
        if OFFSET:
            score_of_label += tl.load(offset + label)
        tl.store(own_out + row, maximum - score_of_label)
    else:
        tl.store(own_out + row, 0.0)
    if TOTAL:
        tl.store(total_out + row, below)


@triton.jit
def _gradient(
    logits: tl.tensor,
    stride: tl.tensor,
    classes: tl.tensor,
    target: tl.tensor,
    handicap: tl.tensor,
    offset: tl.tensor,
    scale: tl.tensor,
    maximum: tl.tensor,
    log_mass: tl.tensor,
    slope: tl.tensor,
    on_own: tl.tensor,
    on_total: tl.tensor,
    HANDICAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(target + row)
    shift = tl.load(handicap + row) if HANDICAP else 0.0
    factor = tl.load(scale) if SCALE else 1.0
    top = tl.load(maximum + row)
    level = tl.load(log_mass + row)
    rate = tl.load(slope + row)
    own = tl.load(on_own + row)
    rest = tl.load(on_total + row) if TOTAL else 0.0
    begin = logits + row * stride
    # A row that does not count is not read, so that its content cannot become NaN.
    if tl.abs(rate) + tl.abs(own) + tl.abs(rest) != 0.0:
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < classes
            score = tl.load(begin + column, mask=inside, other=-float("inf")).to(tl.float32) * factor
            if OFFSET:
                score += tl.load(offset + column, mask=inside, other=0.0)
            is_label = column == label
            if HANDICAP:
                score += tl.where(is_label, shift, 0.0)
            change = tl.exp(score - top - level) * rate - rest - tl.where(is_label, own, 0.0)
            tl.store(begin + column, change.to(logits.dtype.element_ty), mask=inside)
    else:
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            nothing = tl.zeros((BLOCK,), logits.dtype.element_ty)
            tl.store(begin + column, nothing, mask=column < classes)


def row_statistics(
    logits: Float[Tensor, "n classes"],
    target: Int[Tensor, " n"],
    handicap: Float[Tensor, " n"] | None = None,
    *,
    offset: Float[Tensor, " classes"] | None = None,
    scale: Float[Tensor, ""] | None = None,
    total: bool = False,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The same as :func:`lossworks.fused.softmax.row_statistics`, in float32, for ``scale * logits + offset``."""
    rows, classes = logits.shape
    maximum, mass, own, below = torch.zeros(4, rows, dtype=torch.float32, device=logits.device)
    if rows:
        _statistics[(rows,)](
            *_scores(logits, target, handicap, offset, scale), maximum, mass, own, below,
            **_which(handicap, offset, scale), TOTAL=total, **_launch(classes),
        )  # fmt: skip
    return maximum, mass, own, below


def row_gradient_(
    logits: Float[Tensor, "n classes"],
    target: Int[Tensor, " n"],
    maximum: Float[Tensor, " n"],
    log_mass: Float[Tensor, " n"],
    slope: Float[Tensor, " n"],
    on_own: Float[Tensor, " n"],
    on_total: Float[Tensor, " n"] | None = None,
    handicap: Float[Tensor, " n"] | None = None,
    *,
    offset: Float[Tensor, " classes"] | None = None,
    scale: Float[Tensor, ""] | None = None,
) -> None:
    """The same as :func:`lossworks.fused.softmax.row_gradient_`, for the gradient in ``scale * logits + offset``."""
    rows, classes = logits.shape
    if rows:
        _gradient[(rows,)](
            *_scores(logits, target, handicap, offset, scale),
            maximum.float(), log_mass.float(), slope.float(), on_own.float(),
            target if on_total is None else on_total.float(),
            **_which(handicap, offset, scale), TOTAL=on_total is not None, **_launch(classes),
        )  # fmt: skip


def _scores(logits: Tensor, target: Tensor, *extras: Tensor | None) -> tuple[Tensor | int, ...]:
    """The kernels' first arguments; a missing tensor is replaced by any pointer, which the kernels do not read."""
    given = (target if extra is None else extra.float().contiguous() for extra in extras)
    return logits, logits.stride(0), logits.shape[1], target.contiguous(), *given


def _which(handicap: Tensor | None, offset: Tensor | None, scale: Tensor | None) -> dict[str, bool]:
    return {"HANDICAP": handicap is not None, "OFFSET": offset is not None, "SCALE": scale is not None}


def _launch(classes: int) -> dict[str, int]:
    block = min(triton.next_power_of_2(max(classes, 1)), _LARGEST_BLOCK)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 512))}
