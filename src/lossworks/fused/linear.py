"""A loss on a linear output layer, without the matrix of its logits."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossworks.checks import (
    HALF,
    check_choice,
    check_classes,
    check_floating,
    check_ignore_index,
    check_positive,
    check_sample_weight,
    check_tensor,
    check_total,
    readable,
)
from lossworks.fused.chunks import chunk_size, slices
from lossworks.fused.readers import Layer, LossReader, Plan, Reader
from lossworks.fused.rows import run
from lossworks.losses import CrossEntropyLoss
from lossworks.roles import (
    REDUCTIONS,
    Loss,
    Weighting,
    about_kept,
    absent_rows,
    asked_once,
    cite,
    cleared,
    held_back,
    weighted_reduction,
)

_LOOKED_AT = 64
"""At most this many rows with a NaN loss are checked for NaN logits."""


@cite("wijmans2024cutyourlosses", "hsu2024liger")
def linear_loss(
    hidden: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "classes d"],
    target: Shaped[Tensor, "*rows"],
    loss: Loss,
    *,
    bias: Float[Tensor, " classes"] | None = None,
    sample_weight: Float[Tensor, "*rows"] | None = None,
    weights: Weighting | None = None,
    index: Int[Tensor, "*rows"] | None = None,
    group: Int[Tensor, "*rows"] | None = None,
    total: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    chunk: int | None = None,
) -> Tensor:
    r"""Fused linear loss: a loss on a linear output layer, value and gradients, without the matrix of its logits.

    .. math:: \operatorname{loss}(H W^\top + b,\; y)

    It equals ``loss(hidden @ weight.T + bias, target)`` for every loss that reads logits row by row (``rowwise``). The
    logits exist for one chunk of rows at a time. A loss whose closed form is a :class:`lossworks.roles.SoftmaxForm` is
    read a chunk at a time. Other losses are read in blocks of rows that fit the processor's cache, by their
    :class:`lossworks.roles.RowForm` or by autograd. For the mean and the sum, gradients are computed together with the
    value if one is needed. ``"none"`` computes each chunk's logits again in the backward pass, as only that pass knows
    the upstream gradient of each row's loss.

    Args:
        hidden: The input of the output layer, ``(n, d)``, or ``(n, t, d)`` and so on.
        weight: W, the layer's weight.
        target: The target as the loss takes it, but with classes last: int64 ``(n,)`` or ``(n, t)``, or class
            probabilities ``(n, C)`` or ``(n, t, C)``; for a loss on numbers, what it compares with the layer's ``C``
            outputs.
        loss: A loss with ``rowwise = True``. Its own ``reduction`` and ``ignore_index`` are not read: the arguments
            here decide. Its parameters and tensor hyperparameters get gradients, and its memory of rows is updated.
        bias: b, if the layer has one.
        sample_weight: One weight per row, in the shape of ``reduction="none"``, >= 0; ``mean`` divides by their sum. It
            gets a gradient. A row of weight 0, like one whose target is ``ignore_index``, is as if it were absent, and
            its ``hidden`` may hold anything.
        weights: A weighting of the rows, as in :class:`lossworks.Objective`. One that reads the losses costs a pass
            over the chunks before that of the gradients; one with ``reads_losses = False`` costs none.
        index: The rows' numbers in the training data, for a loss or a weighting with a memory per row.
        group: The rows' groups, for a weighting that needs them.
        total: The number that ``mean`` divides by when this batch is a part of a larger one.
        ignore_index: The target of rows that are left out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        chunk: The number of rows computed at a time; by default an eighth of the logit matrix with all
            that is computed beside it, but 4 to 256 MB.

    Returns:
        ``()``, or the rows' shape with ``reduction="none"``.

    Raises:
        TypeError: a loss that does not read each row alone; a weight of another dtype than ``hidden`` (without
            autocast); a target of the wrong dtype.
        ValueError: shapes that don't match, a class outside ``[0, C)``, an ``index`` that is missing.

    Under autocast the products use its dtype, and everything else, including sums of gradients, float32. Under
    ``torch.compile`` and the transforms of ``torch.func`` the chunks are plain operations with the same numbers. A
    ``torch.func`` transform that differentiates keeps all chunks in memory, and so does differentiating twice.

    Papers: wijmans2024cutyourlosses, hsu2024liger

    >>> from lossworks.losses import CrossEntropyLoss
    >>> hidden, weight = torch.ones(2, 3), torch.eye(4, 3)
    >>> linear_loss(hidden, weight, torch.tensor([0, 3]), CrossEntropyLoss())
    tensor(1.7143)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_ignore_index(ignore_index)
    layer = check_layer(hidden, weight, bias)
    reader, shape = loss_reader(layer, target, loss, index, ignore_index, hidden.shape[:-1])
    layer = present_layer(layer, reader, shape, sample_weight)
    plan = plan_for(layer, chunk, in_blocks=reader.form is None)
    return reduced_rows(
        plan, reader, layer, shape, sample_weight, weights, index=index, group=group, total=total, reduction=reduction
    )


@cite("wijmans2024cutyourlosses")
def linear_log_probs(
    hidden: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "classes d"],
    target: Int[Tensor, "*rows"],
    *,
    bias: Float[Tensor, " classes"] | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    sequence: str | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "*rows"]:
    r"""Fused log-probabilities of given classes under a linear output layer, without the matrix of its logits.

    .. math:: \log \mathrm{softmax}\big((W h_i + b) / T\big)_{y_i}

    Preference losses and distillation on samples are computed from these log-probabilities of a language model.

    Args:
        hidden: The input of the output layer, ``(n, d)`` or ``(n, t, d)``.
        weight: W, the layer's weight.
        target: Classes, int64 ``(n,)`` or ``(n, t)``.
        bias: b, if the layer has one.
        temperature: T, > 0.
        ignore_index: The target of rows that get log-probability 0 and no gradient.
        sequence: ``"sum"`` or ``"mean"`` over the last axis of ``target``, without ignored rows; None for one per row.
        chunk: The number of rows computed at a time, see :func:`linear_loss`.

    Returns:
        The target's shape, without its last axis where ``sequence`` is given. A sequence in which all rows are ignored
        has the value 0.

    Raises:
        ValueError: shapes that don't match, a class outside ``[0, C)``, ``temperature <= 0``, another ``sequence``.
        TypeError: a target that isn't int64.

    Papers: wijmans2024cutyourlosses

    >>> linear_log_probs(torch.ones(2, 3), torch.eye(4, 3), torch.tensor([0, 3]))
    tensor([-1.2143, -2.2143])
    """
    check_positive("temperature", temperature)
    check_ignore_index(ignore_index)
    if sequence is not None:
        check_choice("sequence", sequence, ("sum", "mean"))
    check_layer(hidden, weight, bias)
    check_tensor("target", target)
    if target.is_floating_point():
        raise TypeError(f"target must be int64 classes, got {target.dtype}")
    if target.shape == hidden.shape[:-1]:  # a learned temperature must not see what ignored rows hold
        hidden = cleared(hidden.flatten(0, -2), target.flatten() == ignore_index).reshape(hidden.shape)
    log_probs = -linear_loss(
        hidden / temperature,
        weight,
        target,
        CrossEntropyLoss(),
        bias=None if bias is None else bias / temperature,
        ignore_index=ignore_index,
        reduction="none",
        chunk=chunk,
    )
    if sequence is None:
        return log_probs
    summed = log_probs.sum(dim=-1)
    return summed if sequence == "sum" else summed / (target != ignore_index).sum(dim=-1).clamp(min=1)


def present_layer(layer: Layer, reader: LossReader, shape: torch.Size, sample_weight: Tensor | None) -> Layer:
    """The layer with 0 in place of the rows that do not count; the reader then keeps none of weight 0 either."""
    hidden, weight, bias = layer
    if sample_weight is not None:
        check_sample_weight(sample_weight, shape)
        absent = absent_rows(sample_weight.reshape(-1, *reader.tail), hidden if not reader.tail else None)
        if absent is not None:
            reader.leave_out(absent)
    if reader.kept is None:
        return layer
    dropped = ~reader.kept
    return cleared(hidden, dropped.flatten(1).all(dim=1) if dropped.ndim > 1 else dropped), weight, bias


def reduced_rows(
    plan: Plan,
    reader: LossReader,
    layer: Layer,
    shape: torch.Size,
    sample_weight: Tensor | None,
    weights: Weighting | None,
    *,
    index: Tensor | None,
    group: Tensor | None,
    total: float | Tensor | None,
    reduction: str,
) -> Tensor:
    """The losses of the rows, weighted and reduced as :func:`linear_loss` documents."""
    rows = None if reader.kept is None else reader.kept.to(plan.dtype)
    if sample_weight is not None:
        given = sample_weight.to(plan.dtype).reshape(-1, *reader.tail)
        rows = given if rows is None else rows * given
    if weights is not None:
        if not isinstance(weights, Weighting):
            raise TypeError(f"weights must be a lossworks Weighting, got {type(weights).__name__}")
        for name, column in (("index", index), ("group", group)):
            if column is not None:
                check_tensor(name, column)
                if column.shape != shape:
                    wanted = f"{tuple(shape)}, one number a row"
                    raise ValueError(f"{name} must have shape {wanted}, got {tuple(column.shape)}")
        asked = _weigh(weights, plan, reader, layer, index, group)
        rows = torch.ones_like(asked) if rows is None else rows
        if total is None and reduction == "mean":
            total = sum_of(rows)
        rows = rows * asked
    if reduction == "none":
        losses = each(plan, reader, layer)
        losses = losses if rows is None or rows.requires_grad else cleared(losses, rows == 0)
        return (losses if rows is None else losses * rows).reshape(shape)
    return reduced(plan, reader, layer, rows, reduction, total)


def reduced(
    plan: Plan, reader: Reader, layer: Layer, rows: Tensor | None, reduction: str, total: float | Tensor | None
) -> Tensor:
    """The sum or the mean of the losses, weighted by ``rows``; the mean divides by their sum, or by ``total``."""
    if total is not None:
        check_total(total)
    if traced():
        return weighted_reduction(each(plan, reader, layer), rows, reduction, total)
    if rows is None:
        rows = layer[0].new_ones((len(layer[0]), *reader.tail), dtype=plan.dtype)
    if reduction == "mean":
        rows = rows / (sum_of(rows) if total is None else total + (total == 0))
    value: Tensor = _Summed.apply(plan, reader, *layer, rows, *reader.hyper)[0]
    return value


def each(plan: Plan, reader: Reader, layer: Layer) -> Tensor:
    """The losses of each row."""
    if not traced():
        losses: Tensor = _Each.apply(plan, reader, *layer, *reader.hyper)
        return losses
    losses = _in_plain_steps(plan, reader, layer)
    reader.finish()
    return losses


def traced() -> bool:
    """Whether a compiler or a transform of ``torch.func`` is at work, so that the steps must be plain operations."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _in_plain_steps(plan: Plan, reader: Reader, layer: Layer) -> Tensor:
    hidden, weight = layer[0].to(plan.compute), layer[1].to(plan.compute)
    bias = None if layer[2] is None else layer[2].to(plan.compute)
    recomputed = torch.compiler.is_compiling() and reader.remembers_nothing
    step = partial(checkpoint, _chunk, use_reentrant=False) if recomputed else _chunk
    parts = [step(reader, rows, hidden, weight, bias) for rows in slices(len(hidden), plan.chunk)]
    return torch.cat(parts) if parts else _chunk(reader, slice(0, 0), hidden, weight, bias)


def _chunk(reader: Reader, rows: slice, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return reader.trace(torch.nn.functional.linear(hidden[rows], weight, bias), rows)


class _Each(torch.autograd.Function):
    """The losses of rows; their gradients are computed in the backward pass, where the upstream gradient is known."""

    @staticmethod
    def forward(plan: Plan, reader: Reader, hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Tensor) -> Tensor:
        layer = hidden, weight, bias
        losses = checked(run(plan, reader, layer)[0], reader, layer)
        reader.finish()
        return losses

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.plan, ctx.reader = inputs[:2]
        ctx.save_for_backward(*inputs[2:], *ctx.reader.read_again)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan, reader, layer = ctx.plan, ctx.reader, ctx.saved_tensors[:3]
        upstream = upstream.to(plan.dtype)
        if torch.is_grad_enabled() or is_batched(upstream):
            return None, None, *_in_plain_gradients(plan, reader, layer, upstream)
        with reader.standing():
            return None, None, *run(plan, reader, layer, upstream)[1]


class _Summed(torch.autograd.Function):
    """The sum of the rows' losses times given coefficients; gradients are computed with it if they will be needed.

    The first backward pass hands these gradients over; another one (``retain_graph``) computes them again.
    """

    @staticmethod
    def forward(
        plan: Plan,
        reader: Reader,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        coefficient: Tensor,
        *hyper: Tensor,
    ) -> tuple[Tensor | None, ...]:
        asked, layer = any(plan.wanted) or bool(hyper), (hidden, weight, bias)
        losses, gradients = run(plan, reader, layer, coefficient if asked else None, unscaled=True)
        value = (cleared(checked(losses, reader, layer), coefficient == 0) * coefficient).sum()
        reader.finish()
        return value, losses, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.plan, ctx.reader = inputs[:2]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
        ctx.save_for_backward(*inputs[2:], *ctx.reader.read_again)
        ctx.ready = [None if tensor is None else tensor.detach() for tensor in output[1:]]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        plan, reader = ctx.plan, ctx.reader
        if upstream is None:
            return (None,) * (6 + len(reader.hyper))
        *layer, coefficient = ctx.saved_tensors[:4]
        if torch.is_grad_enabled():
            return None, None, *_in_plain_gradients(plan, reader, tuple(layer), upstream, coefficient)
        ready, ctx.ready = ctx.ready, None
        if ready is None:
            with reader.standing():
                losses, gradients = run(plan, reader, tuple(layer), coefficient, unscaled=True)
            ready = [losses, *gradients]
        if is_batched(upstream):
            ready, ctx.ready = [None if tensor is None else tensor * upstream for tensor in ready], ready
        elif not (readable(upstream) and float(upstream) == 1):
            ready = [None if tensor is None else tensor.mul_(upstream) for tensor in ready]
        of_coefficient, *of_layer = ready[:4]
        of_layer = [None if g is None else g.to(held.dtype) for g, held in zip(of_layer, layer, strict=True)]
        return None, None, *of_layer, of_coefficient, *ready[4:]


def is_batched(upstream: Tensor) -> bool:
    """Whether several upstream gradients come at once, as with ``is_grads_batched`` or ``jacobian(vectorize=True)``."""
    return torch._C._functorch.is_functorch_wrapped_tensor(upstream) or torch._C._functorch.is_legacy_batchedtensor(
        upstream
    )


def _in_plain_gradients(
    plan: Plan, reader: Reader, layer: Layer, upstream: Tensor, coefficient: Tensor | None = None
) -> list[Tensor | None]:
    """The gradients of layer, coefficient and ``hyper``, where they have one, in a form that can be differentiated.

    They are taken in aliases. If one of these tensors was computed from another, its gradient would flow on to that
    other here, and then a second time where this function's results are used.
    """
    summed = () if coefficient is None else (coefficient,)
    with torch.enable_grad():
        aliases = [
            tensor.view_as(tensor) if tensor is not None and tensor.requires_grad else tensor
            for tensor in (*layer, *summed, *reader.hyper)
        ]
        hidden, weight, bias = aliases[:3]
        assert hidden is not None
        assert weight is not None
        with reader.standing([alias for alias in aliases[3 + len(summed) :] if alias is not None]):
            value = _in_plain_steps(plan, reader, (hidden, weight, bias))
        if summed:
            value = (value * aliases[3]).sum()
    leaves = [alias for alias in aliases if alias is not None and alias.requires_grad]
    again = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(value, leaves, upstream.to(value.dtype), create_graph=again, allow_unused=True))
    return [next(found) if alias is not None and alias.requires_grad else None for alias in aliases]


def check_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, prefix: str = "", suffix: str = "") -> Layer:
    """The layer with its rows flat; raise unless its shapes and dtypes match."""
    check_floating(f"{prefix}hidden", hidden)
    check_floating(f"{prefix}weight{suffix}", weight)
    if bias is not None:
        check_floating(f"{prefix}bias{suffix}", bias)
    if weight.ndim != 2:
        raise ValueError(f"{prefix}weight{suffix} must have shape (classes, d), got {tuple(weight.shape)}")
    if hidden.ndim < 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{prefix}hidden must have shape (n, d) or (n, t, d) with d = {weight.shape[1]} as {prefix}weight{suffix} "
            f"has, got {tuple(hidden.shape)}"
        )
    for name, tensor in ((f"weight{suffix}", weight), (f"bias{suffix}", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{prefix}{name} must be on {hidden.device} as {prefix}hidden is, got {tensor.device}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{prefix}bias{suffix} must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not torch.is_autocast_enabled(hidden.device.type):
        for name, tensor in ((f"weight{suffix}", weight), (f"bias{suffix}", bias)):
            if tensor is not None and tensor.dtype != hidden.dtype:
                raise TypeError(
                    f"{prefix}{name} must be {hidden.dtype} as {prefix}hidden is (or use autocast), got {tensor.dtype}"
                )
    return hidden.flatten(0, -2), weight, bias


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the layer's products: autocast's dtype if it is on, otherwise that of ``hidden``."""
    device = hidden.device.type
    half = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    return torch.get_autocast_dtype(device) if half else hidden.dtype


def plan_for(layer: Layer, chunk: int | None, *, copies: int = 1, in_blocks: bool = False) -> Plan:
    """How to run this layer: the dtype by autocast, the chunk by its budget, the gradients by what requires one.

    On a GPU a chunk that is read ``in_blocks`` is a single block, with a copy as its result.
    """
    hidden, weight, bias = layer
    compute = product_dtype(hidden)
    itemsize = 4 if compute in HALF else compute.itemsize
    on_cpu = hidden.device.type == "cpu"
    copies += in_blocks and not on_cpu
    size = chunk_size(len(hidden), len(weight), itemsize, chunk, copies=copies, in_blocks=in_blocks and on_cpu)
    grad = torch.is_grad_enabled()
    h, w, b = (grad and tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias))
    return Plan(size, compute, (h, w, b))


def checked(losses: Tensor, reader: Reader, layer: Layer) -> Tensor:
    """The losses, or an error if a logit is NaN; testing the sum of all losses is cheaper than testing each."""
    if readable(losses) and not bool(losses.sum().isfinite()):
        rows = losses.isnan().reshape(len(losses), -1).any(dim=1).nonzero().flatten()
        if rows.numel() and reader.is_nan(layer, rows[:_LOOKED_AT]):
            more = f" and {rows.numel() - 3} more" if rows.numel() > 3 else ""
            raise ValueError(f"{reader.logits} has NaN in row {', '.join(str(int(r)) for r in rows[:3])}{more}")
    return losses


def sum_of(rows: Tensor) -> Tensor:
    """The number that a mean over these rows divides by: their sum, or 1 where none counts."""
    total = rows.sum()
    return torch.where(total > 0, total, torch.ones_like(total))


def loss_reader(
    layer: Layer, target: Tensor, loss: Loss, index: Tensor | None, ignore_index: int, lead: torch.Size
) -> tuple[LossReader, torch.Size]:
    """A reader of the rows for this loss, and the shape of the rows' losses."""
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a lossworks Loss, got {type(loss).__name__}")
    if not loss.rowwise or loss.stochastic or loss.couples_batch:
        raise TypeError(f"{type(loss).__name__} does not read each row of logits alone, so it can't be taken in chunks")
    check_tensor("target", target)
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("target must not require a gradient, as the fused form doesn't compute it: detach it")
    hidden, weight, _ = layer
    classes = len(weight)
    if not classes:
        raise ValueError(f"weight must have at least one class, got {tuple(weight.shape)}")
    grad = torch.is_grad_enabled()
    hyper = tuple(tensor for tensor in (*loss.parameters(), *loss.buffers()) if grad and tensor.requires_grad)
    kept, tail, form = None, torch.Size(), None
    if loss.kind.flat:
        flat, tail = _other_target(loss, target, lead, classes, weight)
    elif target.is_floating_point():
        loss.check_soft(target)
        if target.shape != (*lead, classes):
            raise ValueError(f"target must have shape {(*lead, classes)}, got {tuple(target.shape)}")
        flat = target.reshape(-1, classes)
    else:
        if target.shape != lead:
            raise ValueError(f"target must have shape {tuple(lead)}, one class a row, got {tuple(target.shape)}")
        flat = target.flatten()
        check_classes(weight.detach().new_zeros(()).expand(len(hidden), classes), flat, ignore_index=ignore_index)
        kept = flat != ignore_index
        flat = torch.where(kept, flat, 0)
        form = loss.closed_form(classes)
        if form is not None and hyper and not form.follows_learning:
            form = None
    shape = torch.Size((*lead, *tail))
    numbers = None
    if loss.needs_index:
        numbers = loss._extra(index, shape)["index"]
        numbers = numbers if kept is None else torch.where(kept, numbers, -1)
    if loss.kind.has_classes and not traced():
        # The loss checks an empty batch of so many classes, with its own error messages.
        with torch.no_grad(), held_back(loss):
            loss.rows(weight.detach().new_zeros((0, classes)), flat[:0], None if numbers is None else numbers[:0])
    reader = LossReader(loss, flat, kept, numbers, hyper, form, tuple(tail))
    return reader, shape


def _other_target(
    loss: Loss, target: Tensor, lead: torch.Size, classes: int, weight: Tensor
) -> tuple[Tensor, torch.Size]:
    """The flat target of a loss on numbers, and the shape of one row's losses."""
    whole = target.shape == (*lead, classes)
    by_number = type(loss).rows is Loss.rows
    if not whole and (by_number or target.shape != lead):
        wanted = f"{(*lead, classes)}" if by_number else f"{tuple(lead)} or {(*lead, classes)}"
        raise ValueError(f"target must have shape {wanted}, got {tuple(target.shape)}")
    if whole and not by_number and len(lead) > 1:
        raise ValueError(
            f"hidden must have shape (n, d) for {type(loss).__name__}, which takes all after the first axis as "
            f"one row, got ({', '.join(map(str, lead))}, d)"
        )
    loss.kind.check_values(target)
    flat = target.reshape(-1, classes) if whole else target.flatten()
    losses, _ = loss.rows(weight.detach().new_zeros((0, classes)), flat[:0])
    return flat, losses.shape[1:]


def _weigh(
    weights: Weighting,
    plan: Plan,
    reader: LossReader,
    layer: Layer,
    index: Tensor | None,
    group: Tensor | None,
) -> Tensor:
    """The weighting's weights of the rows; losses are computed only if the weighting reads them."""
    if weights.reads_losses:
        with torch.no_grad():
            losses = each(plan, reader, layer)
    else:
        losses = layer[0].new_ones((len(layer[0]), *reader.tail), dtype=plan.dtype)
    given = (("index", index), ("group", group), ("target", reader.target))
    columns = {name: column.flatten() for name, column in given if column is not None}
    flat = losses.flatten()
    if reader.kept is None or not (asked_once(weights) or readable(reader.kept)):
        found = weights(flat, **columns)
    else:
        found = about_kept(lambda rows, some: weights(rows, **some), flat, columns, reader.kept.flatten())
    return found.detach().to(plan.dtype).reshape(losses.shape)
