"""The chunk loop with Triton kernels: half precision is kept, and a chunk is changed in place."""

import torch
from torch import Tensor

from lossworks.fused import kernels
from lossworks.fused.chunks import slices
from lossworks.fused.readers import Layer, LossReader, Plan, Run, plus
from lossworks.roles import SoftmaxForm

__all__ = ["run_with_kernels"]

_PRODUCT_NUMBERS = 2**26


def run_with_kernels(
    plan: Plan, reader: LossReader, form: SoftmaxForm, layer: Layer, coefficient: Tensor | None
) -> Run:
    """The same as :func:`lossworks.fused.rows.run`, for a reader of the softmax family."""
    every, matrix, bias = layer
    n, classes = len(every), len(matrix)
    weight, buffer = matrix.to(plan.compute), every.new_empty((min(plan.chunk, n), classes), dtype=plan.compute)
    added = None if bias is None else bias.to(plan.compute).float()
    # Half precision has no digits to lose at an offset, and writing its scores would round once more: there the kernels
    # make the scores as they read the logits.
    written = plan.compute == torch.float32 and not form.reads_logits_as_they_are
    scale, offset = (None, None) if written else _scale_and_offset(form, added, every)
    lift = None
    if coefficient is not None and plan.compute == torch.float16 and n:
        # A small float16 gradient must not be lost before a loss scaler scales it up.
        lift = coefficient.abs().amax()
        coefficient = coefficient / torch.where(lift > 0, lift, 1)
    losses = every.new_empty(n, dtype=plan.dtype)
    sums = [
        None if coefficient is None or not asked or given is None else torch.zeros_like(given, dtype=_sum_dtype(given))
        for asked, given in zip(plan.wanted, layer, strict=True)
    ]
    d_hidden, d_weight, d_bias = sums
    hyper: list[Tensor | None] = [None if coefficient is None else torch.zeros_like(held) for held in reader.hyper]
    for rows in slices(n, plan.chunk):
        hidden = every[rows].to(plan.compute)
        logits = torch.mm(hidden, weight.T, out=buffer[: len(hidden)])
        target = reader.target[rows]
        handicap = form.handicaps(target, plan.dtype)
        if written:
            if added is not None:
                logits += added
            logits -= logits.amax(dim=1, keepdim=True)
            form.score_(logits, target[:, None], handicap)
            handicap = None
        maximum, mass, own, below = kernels.row_statistics(
            logits, target, handicap, offset=offset, scale=scale, total=form.reads_total
        )
        log_mass = mass.log()
        read = (own + log_mass, below + classes * log_mass)[: 1 + form.reads_total]
        if coefficient is None:
            losses[rows] = reader.where_kept(form.value(*read), rows)
            continue
        with torch.enable_grad():
            for number in read:
                number.requires_grad_()
            some = reader.where_kept(form.value(*read), rows)
            found = torch.autograd.grad(some, (*read, *reader.hyper), coefficient[rows], allow_unused=True)
        losses[rows] = some.detach()
        slopes = [torch.zeros_like(maximum) if slope is None else slope * form.scale for slope in found[: len(read)]]
        on_own, on_total = slopes[0], slopes[1] if form.reads_total else None
        slope = on_own if on_total is None else on_own + classes * on_total
        kernels.row_gradient_(
            logits, target, maximum, log_mass, slope, on_own, on_total, handicap, offset=offset, scale=scale
        )
        if d_hidden is not None:
            _add_product_(d_hidden[rows], logits, weight, fresh=True)
        if d_weight is not None:
            _add_product_(d_weight, logits.T, hidden, fresh=rows.start == 0)
        if d_bias is not None:
            d_bias += logits.sum(dim=0, dtype=d_bias.dtype)
        for summed, gradient in zip(hyper, found[len(read) :], strict=True):
            if summed is not None and gradient is not None:
                summed += gradient
    if lift is not None:
        for summed in (*sums, *hyper):
            if summed is not None:
                summed *= lift
    return losses, sums, hyper


def _scale_and_offset(form: SoftmaxForm, bias: Tensor | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The factor of the logits and the number added to them afterwards, in float32; None where there is none."""
    scale: Tensor | None = None
    if isinstance(form.scale, Tensor):
        scale = form.scale.float()
    elif form.scale != 1:
        scale = torch.full((), form.scale, dtype=torch.float32, device=like.device)
    scaled = None if bias is None else bias * form.scale
    return scale, plus(scaled, None if form.shift is None else form.shift.float())


def _sum_dtype(leaf: Tensor) -> torch.dtype:
    """At least float32; on a GPU also bfloat16, as each product is summed in float32 and rounded once per chunk."""
    compact = leaf.is_cuda and leaf.dtype == torch.bfloat16
    return leaf.dtype if compact else torch.promote_types(leaf.dtype, torch.float32)


def _add_product_(summed: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """Add a matrix product to the sum, or write it if ``fresh``; block by block where the precisions differ."""
    if summed.dtype == left.dtype:
        summed.addmm_(left, right, beta=0 if fresh else 1)
        return
    step = max(1, _PRODUCT_NUMBERS // right.shape[1])
    for block in slices(len(summed), step):
        product = left[block] @ right
        if fresh:
            summed[block] = product
        else:
            summed[block] += product
