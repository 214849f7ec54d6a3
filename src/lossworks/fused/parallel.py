"""A linear output layer and its loss, with the classes sharded over the ranks of a process group."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lossworks.checks import check_choice, check_floating, check_int
from lossworks.fused.linear import check_layer, loss_reader, plan_for, present_layer, reduced_rows, traced
from lossworks.fused.readers import Layer, LossReader, Reading
from lossworks.fused.softmax import row_gradient_, row_statistics
from lossworks.roles import REDUCTIONS, Loss, SoftmaxForm, Weighting, cite

__all__ = ["parallel_linear_loss"]


@dataclass(frozen=True)
class _Shards:
    """Which rank holds which classes: each rank holds consecutive classes, in the order of the ranks."""

    group: "dist.ProcessGroup | None"
    sizes: tuple[int, ...]

    @property
    def classes(self) -> int:
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        rank = dist.get_rank(self.group)
        begin = sum(self.sizes[:rank])
        return slice(begin, begin + self.sizes[rank])

    @staticmethod
    def of(group: "dist.ProcessGroup | None", hidden: Tensor, weight: Tensor, sizes: Sequence[int] | None) -> "_Shards":
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        if sizes is None:
            mine = torch.tensor([[*weight.shape, hidden.shape[:-1].numel(), hidden.shape[-1]]], device=weight.device)
            each = [torch.empty_like(mine) for _ in range(ranks)]
            dist.all_gather(each, mine, group=group)
            shapes = torch.cat(each).tolist()
            # If only the rank with wrong shapes raised an error, the others would wait forever.
            n, features = shapes[0][2:]
            if any(others != [features, n, features] for _, *others in shapes):
                held = "; ".join(f"{(rows, d)} and {(own, width)}" for own, width, rows, d in shapes)
                raise ValueError(
                    f"hidden must be (n, d) on every rank and weight_shard (C_r, d), the ranks have {held}"
                )
            return _Shards(group, tuple(own for own, *_ in shapes))
        if not isinstance(sizes, Sequence):
            raise TypeError(
                f"shard_sizes must be a sequence of the ranks' numbers of classes, got {type(sizes).__name__}"
            )
        for held_by, size in enumerate(sizes):
            check_int(f"shard_sizes[{held_by}]", size, low=0)
        if len(sizes) != ranks or sizes[rank] != len(weight):
            raise ValueError(
                f"shard_sizes must have one number of classes for each of {ranks} ranks, {len(weight)} for rank {rank},"
                f" got {tuple(sizes)}"
            )
        return _Shards(group, tuple(sizes))

    def gather_columns(self, scores: Float[Tensor, "n own"]) -> Float[Tensor, "n classes"]:
        """The scores of all classes, gathered from all ranks."""
        padded = scores.new_zeros(len(scores), max(self.sizes))
        padded[:, : scores.shape[1]] = scores
        every = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(every, padded, group=self.group)
        return torch.cat([part[:, :size] for part, size in zip(every, self.sizes, strict=True)], dim=1)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The maximum over ranks, in place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor


class _ShardReader(LossReader):
    """A reader of a loss's rows from this rank's classes and from what the other ranks send about theirs."""

    def __init__(self, whole: LossReader, shards: _Shards) -> None:
        super().__init__(**{entry.name: getattr(whole, entry.name) for entry in fields(whole) if entry.init})
        self.shards, own = shards, shards.own
        self.label = self.target
        if self.softmax is not None:
            self.label = torch.where((self.target >= own.start) & (self.target < own.stop), self.target - own.start, -1)

    def read(self, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        """See :class:`lossworks.fused.readers.Reader`."""
        if self.softmax is not None:
            return self._merged(self.softmax, logits, rows, coefficient)
        every = self.shards.gather_columns(logits)
        reading = super().read(every, rows, coefficient)
        logits.copy_(every[:, self.shards.own])
        return reading

    def trace(self, logits: Tensor, rows: slice) -> Tensor:
        """Raise an error: a compiler or a second gradient cannot follow the communication between the ranks."""
        raise RuntimeError(
            "parallel_linear_loss runs eagerly: keep it out of torch.compile and torch.func"
            if traced()
            else "parallel_linear_loss can't be differentiated twice, nor by several upstream gradients at once: its"
            " backward pass takes neither create_graph=True nor is_grads_batched=True"
        )

    def is_nan(self, layer: Layer, rows: Tensor) -> bool:
        """Assume NaN logits: a rank that looked at its own classes alone would leave the others waiting."""
        return True

    def sum_hidden(self, gradient: Tensor) -> None:
        """Add up the shards' parts of the gradient in hidden."""
        self.shards.sum_(gradient)

    def _largest(self, logits: Tensor) -> Tensor:
        """Each row's largest logit over all ranks."""
        own = logits.amax(dim=1, keepdim=True) if logits.shape[1] else logits.new_full((len(logits), 1), -torch.inf)
        return self.shards.max_(own)

    def _merged(self, form: SoftmaxForm, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        """Read a loss of the softmax family: the ranks exchange four numbers per row, or five."""
        label, classes = self.label[rows], self.shards.classes
        if not form.reads_logits_as_they_are:
            logits -= self._largest(logits)
            handicap = form.handicaps(self.target[rows], logits.dtype)
            kept = None if handicap is None or not logits.shape[1] else torch.where(label >= 0, handicap, 0)
            form.score_(logits, label.clamp(min=0)[:, None], kept, self.shards.own)
        part = row_statistics(logits, label, total=form.reads_total)
        maximum = self.shards.max_(part.maximum.clone())
        # A rank without classes has nothing that could be below the maximum.
        rise = torch.where(maximum == part.maximum, 0, maximum - part.maximum)
        below = part.total + logits.shape[1] * rise if logits.shape[1] else part.total
        own = torch.where(label >= 0, part.own + rise, 0)
        mass, own, below = self.shards.sum_(torch.stack([part.mass * (-rise).exp(), own, below]))
        log_mass = mass.log()
        read = (own + log_mass, below + classes * log_mass)[: 1 + form.reads_total]
        if coefficient is None:
            return Reading(self.where_kept(form.value(*read), rows))
        with torch.enable_grad():
            for number in read:
                number.requires_grad_()
            losses = self.where_kept(form.value(*read), rows)
            found = torch.autograd.grad(losses, (*read, *self.hyper), coefficient, allow_unused=True)
        slopes = [torch.zeros_like(mass) if slope is None else slope * form.scale for slope in found[: len(read)]]
        on_own, on_total = slopes[0], slopes[1] if form.reads_total else None
        slope = on_own if on_total is None else on_own + classes * on_total
        row_gradient_(logits, label, maximum, log_mass, slope, on_own, on_total)
        return Reading(losses.detach(), None, found[len(read) :])


@cite("shoeybi2019megatron")
def parallel_linear_loss(
    hidden: Float[Tensor, "*rows d"],
    weight_shard: Float[Tensor, "own d"],
    target: Shaped[Tensor, "*rows"],
    loss: Loss,
    *,
    process_group: "dist.ProcessGroup | None",
    bias_shard: Float[Tensor, " own"] | None = None,
    sample_weight: Float[Tensor, "*rows"] | None = None,
    weights: Weighting | None = None,
    index: Int[Tensor, "*rows"] | None = None,
    group: Int[Tensor, "*rows"] | None = None,
    total: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    chunk: int | None = None,
    shard_sizes: Sequence[int] | None = None,
) -> Tensor:
    r"""Vocabulary-parallel loss: a linear layer whose classes are sharded over ranks, equal to that of one process.

    .. math::
        \ell\big(h\, [W_0; W_1; \dots]^\top + [b_0; b_1; \dots],\; y\big), \qquad W_r \text{ on rank } r

    Each rank holds the weights of some consecutive classes, rank 0 the first ones; ranks may hold different numbers of
    classes, or none. Hidden, target and all other arguments are the same on every rank of the group. For losses of the
    softmax family the ranks exchange four numbers per row, the maximum first, and one more where the logits are scaled
    or something is added to them, as in logit adjustment. For every other row-wise loss they gather the logits of one
    chunk of rows, so that the memory is that of one chunk with all classes, and each rank computes the whole loss.

    Which gradients are reduced, and by whom:

    - ``hidden``: the shards' parts are summed over the group here, where the gradient is computed (together with the
      value, or in the backward pass with ``"none"``). Every rank gets the whole gradient; nothing before ``hidden`` may
      sum it over the group again.
    - ``weight_shard``, ``bias_shard``: each rank gets the whole gradient of its own classes. It must not be reduced
      over the group.
    - ``sample_weight`` and the loss's parameters: every rank computes the whole gradient from the same numbers. It must
      not be summed over the group.

    So nothing is left to reduce over this group. Over another group, whose ranks hold other rows, all gradients are
    reduced as usual. Every rank must make the call, and its backward pass, in the same order and with the same
    arguments requiring gradients.

    Args:
        hidden: The input of the output layer, ``(n, d)``, or ``(n, t, d)`` and so on; the same on every rank.
        weight_shard: This rank's rows of the layer's weight, ``(C_r, d)``.
        target: The target as :func:`linear_loss` takes it, with classes numbered over all ranks.
        loss: A loss with ``rowwise = True``; its own ``reduction`` and ``ignore_index`` are not read.
        process_group: The ranks that hold the shards; None for all ranks.
        bias_shard: This rank's part of the layer's bias, ``(C_r,)``.
        sample_weight: One weight per row, >= 0; ``mean`` divides by their sum.
        weights: A weighting of the rows; every rank calls it for all rows.
        index: The rows' numbers in the training data, for a loss or a weighting with a memory per row.
        group: The rows' groups, for a weighting that needs them.
        total: The number that ``mean`` divides by when this batch is a part of a larger one.
        ignore_index: The target of rows that are left out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        chunk: The number of rows computed at a time, the same on every rank; by default as in :func:`linear_loss` for
            all classes.
        shard_sizes: The number of classes of each rank, in a list or tuple. Without it the ranks exchange these numbers
            in every call, and a GPU must be waited for.

    Returns:
        ``()``, or the rows' shape with ``reduction="none"``; the same numbers on every rank.

    Raises:
        RuntimeError: under ``torch.compile`` or a transform of ``torch.func``; if the backward pass is to be
            differentiated itself (``create_graph=True``) or is given several gradients (``is_grads_batched=True``).
        TypeError: as in :func:`linear_loss`.
        ValueError: as in :func:`linear_loss`; shapes that don't match between the ranks.

    Use it when the output layer is too large for one device, or is sharded already.

    Papers: shoeybi2019megatron

    >>> from lossworks.losses import CrossEntropyLoss
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> hidden, shard, target = torch.ones(2, 3), torch.eye(4, 3), torch.tensor([0, 3])
    >>> parallel_linear_loss(hidden, shard, target, CrossEntropyLoss(), process_group=None)
    tensor(1.7143)
    >>> dist.destroy_process_group()
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_floating("hidden", hidden)
    check_floating("weight_shard", weight_shard)
    if hidden.ndim < 2 or weight_shard.ndim != 2:
        raise ValueError(
            f"hidden must have shape (n, d) or (n, t, d) and weight_shard (C_r, d), got {tuple(hidden.shape)} and"
            f" {tuple(weight_shard.shape)}"
        )
    shards = _Shards.of(process_group, hidden, weight_shard, shard_sizes)
    layer = check_layer(hidden, weight_shard, bias_shard, suffix="_shard")
    # Functions that are called with the whole layer read only its shape.
    whole = (layer[0], weight_shard.detach().new_empty(()).expand(shards.classes, weight_shard.shape[1]), None)
    reader, shape = loss_reader(whole, target, loss, index, ignore_index, hidden.shape[:-1])
    layer = present_layer(layer, reader, shape, sample_weight)
    plan = plan_for(whole, chunk, copies=1 if reader.form is not None else 3)
    plan = replace(plan, wanted=plan_for(layer, plan.chunk).wanted)
    shared = _ShardReader(reader, shards)
    return reduced_rows(
        plan, shared, layer, shape, sample_weight, weights, index=index, group=group, total=total, reduction=reduction
    )
