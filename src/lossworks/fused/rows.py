"""The chunk loop: losses of rows, and gradients through a linear layer, with one chunk of logits at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.fused.chunks import slices, tiles
from lossworks.fused.readers import Layer, LossReader, Plan, Reader, Run, plus
from lossworks.fused.softmax import kernels_apply
from lossworks.pages import keep_freed_pages

__all__ = ["run"]


@torch.no_grad()
def run(
    plan: Plan, reader: Reader, layer: Layer, coefficient: Tensor | None = None, *, unscaled: bool = False
) -> tuple[Tensor, list[Tensor | None]]:
    """Each row's losses; with one coefficient per row, also the gradients of their weighted sum.

    The gradients are those of hidden, weight, bias and the reader's ``hyper``, with None where none is needed. With
    ``unscaled`` the gradients of float16 tensors stay in ``plan.dtype``, as float16 could lose small numbers that a
    loss scaler would scale up.
    """
    keep_freed_pages()
    with torch.autocast(layer[0].device.type, enabled=False):
        if type(reader) is LossReader and reader.softmax is not None and kernels_apply(layer[0], plan.compute):
            from lossworks.fused.gpu import run_with_kernels

            losses, sums, hyper = run_with_kernels(plan, reader, reader.softmax, layer, coefficient)
        else:
            losses, sums, hyper = _loop(plan, reader, layer, coefficient)
    found = [
        None
        if total is None or given is None
        else total.to(total.dtype if unscaled and given.dtype == torch.float16 else given.dtype)
        for total, given in zip(sums, layer, strict=True)
    ]
    return losses, [*found, *hyper]


def _loop(plan: Plan, reader: Reader, layer: Layer, coefficient: Tensor | None) -> Run:
    every, matrix, bias = layer
    n, classes = len(every), len(matrix)
    weight = matrix.to(plan.compute)
    offset = None if bias is None else bias.to(plan.compute).to(plan.dtype)
    buffer = every.new_empty((min(plan.chunk, n), classes), dtype=plan.dtype)
    losses = every.new_empty((n, *reader.tail), dtype=plan.dtype)
    sums = [
        None if coefficient is None or not asked or given is None else torch.empty_like(given, dtype=plan.dtype)
        for asked, given in zip(plan.wanted, layer, strict=True)
    ]
    d_hidden, d_weight, d_bias = sums
    if d_bias is not None:
        d_bias.zero_()
    if d_weight is not None and not n:
        d_weight.zero_()
    hyper: list[Tensor | None] = [None] * len(reader.hyper)
    for rows in slices(n, plan.chunk):
        hidden = every[rows].to(plan.compute)
        logits = buffer[: len(hidden)]
        for some in tiles(weight):
            _product(hidden, weight[some].T, logits[:, some])
        if offset is not None:
            logits += offset
        reading = reader.read(logits, rows, None if coefficient is None else coefficient[rows])
        losses[rows] = reading.losses
        if coefficient is None:
            continue
        factor = None if reading.factor is None else reading.factor[:, None]
        if d_hidden is not None:
            lift = _lift(logits) if plan.compute == torch.float16 else None
            leaving = (logits if lift is None else logits / lift).to(plan.compute)
            _product(leaving, weight, d_hidden[rows])
            for one in (factor, lift):
                if one is not None:
                    d_hidden[rows] *= one
        if d_weight is not None:
            hidden = hidden.to(plan.dtype)
            scaled = hidden if factor is None else hidden * factor
            torch.addmm(d_weight, logits.T, scaled, beta=int(rows.start > 0), out=d_weight)
        if d_bias is not None:
            d_bias += logits.sum(dim=0) if reading.factor is None else logits.T @ reading.factor
        hyper = [plus(one, other) for one, other in zip(hyper, reading.hyper, strict=True)]
    if d_hidden is not None:
        reader.sum_hidden(d_hidden)
    return losses, sums, hyper


def _lift(gradient: Float[Tensor, "n classes"]) -> Float[Tensor, "n 1"]:
    """The number that each row is divided by before it is stored in float16, which could lose small numbers."""
    largest = gradient.abs().amax(dim=1, keepdim=True)
    return torch.where(largest > 0, largest, 1)


def _product(one: Tensor, other: Tensor, into: Tensor) -> None:
    if one.dtype == into.dtype:
        torch.addmm(into, one, other, beta=0, out=into)
    else:
        into.copy_(one @ other)
