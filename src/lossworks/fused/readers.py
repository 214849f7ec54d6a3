"""Readers, which turn a chunk of logits into losses and gradients."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import HALF, checks
from lossworks.fused.chunks import blocks
from lossworks.roles import ClosedForm, Loss, Offers, SoftmaxForm, cleared, held_back, remember_over_ranks
from lossworks.roles.memory import each_once

__all__ = ["Layer", "LossReader", "Plan", "Reader", "Reading", "Run"]


@dataclass
class Reading:
    """The result of reading a chunk, whose logits have been replaced by their gradient up to a factor per row.

    ``losses`` are the rows' values. ``factor`` is what each row of the chunk must still be multiplied by (None for 1).
    ``hyper`` holds the gradients of the tensors that the reader learns.
    """

    losses: Tensor
    factor: Float[Tensor, " rows"] | None = None
    hyper: Sequence[Tensor | None] = ()


class Reader:
    """The interface between a loss and the chunk loop, which knows nothing else about the loss."""

    hyper: tuple[Tensor, ...] = ()
    """The tensors, besides the layer's, that get a gradient."""
    tail: tuple[int, ...] = ()
    """The shape of one row's losses: () where a row has one loss."""
    remembers_nothing: bool = True
    """Whether reading a row twice gives the same result."""

    logits: str = "hidden @ weight.T"
    """The expression for the logits in the names of the caller's arguments, for error messages."""

    def read(self, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        """The losses of these rows; with one coefficient per row, also replace the logits by their sum's gradient."""
        raise NotImplementedError

    def trace(self, logits: Tensor, rows: slice) -> Tensor:
        """The losses of these rows, computed in plain operations."""
        raise NotImplementedError

    @property
    def read_again(self) -> tuple[Tensor, ...]:
        """The tensors, besides the layer and ``hyper``, that a second reading needs unchanged."""
        return ()

    @contextlib.contextmanager
    def standing(self, hyper: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Read with the tensors that the loss held when the reader was made; ``hyper``, if given, replaces its own."""
        yield

    def is_nan(self, layer: "Layer", rows: Tensor) -> bool:
        """Whether the logits of some of these rows are NaN, and not only their losses."""
        hidden, weight, bias = (None if given is None else given.detach() for given in layer)
        assert hidden is not None
        assert weight is not None
        logits = hidden[rows].to(weight.dtype) @ weight.T
        return bool((logits if bias is None else logits + bias).isnan().any())

    def finish(self) -> None:
        """Called when all rows have been read without NaN."""

    def sum_hidden(self, gradient: Tensor) -> None:
        """Called with the gradient in hidden; where classes are sharded, it adds the other ranks' parts in place."""


@dataclass
class LossReader(Reader):
    """A reader of a loss's rows: by the loss's closed form if it has one, otherwise by autograd on blocks."""

    loss: Loss
    target: Tensor
    kept: Tensor | None
    index: Tensor | None
    hyper: tuple[Tensor, ...]
    form: ClosedForm | None = None
    tail: tuple[int, ...] = ()
    memory: Tensor | None = None
    unfinished: bool = field(default=True, init=False)
    offers: Offers = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.remembers_nothing = self.index is None
        self._held: list[tuple[dict[str, Any], str, Tensor | None]] = [
            (tensors, name, tensor)
            for module in self.loss.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
        ]
        self.each_once = False
        if self.index is not None and not torch.compiler.is_compiling():
            with checks():  # worth waiting for on any device: if a row comes twice, all rows must be held
                self.each_once = each_once(self.index)

    @property
    def softmax(self) -> SoftmaxForm | None:
        """The loss's closed form if it is of the softmax family, otherwise None."""
        return self.form if isinstance(self.form, SoftmaxForm) else None

    @property
    def read_again(self) -> tuple[Tensor, ...]:
        """See :class:`Reader`."""
        return (self.target,)

    @contextlib.contextmanager
    def standing(self, hyper: Sequence[Tensor] | None = None) -> Iterator[None]:
        """See :class:`Reader`."""
        others = dict(zip(map(id, self.hyper), self.hyper if hyper is None else hyper, strict=True))
        now = [(tensors, name, tensors[name]) for tensors, name, _ in self._held]
        for tensors, name, then in self._held:
            tensors[name] = others.get(id(then), then)
        try:
            yield
        finally:
            for tensors, name, tensor in now:
                tensors[name] = tensor

    def read(self, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        """See :class:`Reader`."""
        if self.softmax is not None:
            return self._by_softmax(self.softmax, logits, rows, coefficient)
        losses = logits.new_empty((len(logits), *self.tail))
        hyper: list[Tensor | None] = [None] * len(self.hyper)
        for block in blocks(logits):
            part = slice(rows.start + block.start, rows.start + block.stop)
            extra = self._extra(logits[block], part)
            if coefficient is None:
                with checks(False):  # the caller has checked the targets, and checks the losses
                    losses[block] = self._losses(logits[block], part, extra)
                continue
            if self.form is not None:
                some, slope = self.form.value_and_gradient(logits[block], self.target[part], extra.get("memory"))
                losses[block] = self.where_kept(some, part)
                torch.mul(slope, self.where_kept(coefficient[block], part)[:, None], out=logits[block])
                continue
            with torch.enable_grad(), checks(False):
                leaf = logits[block].detach().requires_grad_()
                some = self._losses(leaf, part, extra)
                losses[block] = some.detach()
                found = torch.autograd.grad(some, (leaf, *self.hyper), coefficient[block], allow_unused=True)
            logits[block] = 0 if found[0] is None else found[0]
            hyper = [plus(one, other) for one, other in zip(hyper, found[1:], strict=True)]
        return Reading(losses, None, hyper)

    def trace(self, logits: Tensor, rows: slice) -> Tensor:
        """See :class:`Reader`."""
        logits = logits.float() if logits.dtype in HALF else logits
        return self._losses(logits, rows, self._extra(logits.detach(), rows))

    def finish(self) -> None:
        """Update the rows' memory once, when every row has been read with the memory as it was before."""
        if self.index is not None and self.memory is not None and self.unfinished and self.loss.training:
            remember_over_ranks(self.loss, self.offers, None)
            self.loss.keep(self.index, self.memory)
            self.offers = []
        self.unfinished = False

    def _extra(self, logits: Tensor, rows: slice) -> dict[str, Tensor]:
        """The rows' numbers and their memory, which all rows read in its state before the first row."""
        if self.index is None:
            return {}
        index = self.index[rows]
        if self.memory is None or self.unfinished:
            with contextlib.nullcontext() if self.each_once else held_back(self.loss, self.offers):
                memory = self.loss.recall(logits, self.target[rows], index)
            if self.memory is None:
                self.memory = memory.new_empty((len(self.target), *memory.shape[1:]))
            self.memory[rows] = memory
        return {"index": index, "memory": self.memory[rows]}

    def _losses(self, logits: Tensor, rows: slice, extra: dict[str, Tensor]) -> Tensor:
        target = self.target[rows]
        if self.loss.kind.flat:
            kept = None if self.kept is None else self.kept[rows]
            logits = logits if kept is None else cleared(logits, ~kept)
            return self.where_kept(self.loss.rows(logits, target)[0], rows)
        target = target.to(logits.dtype) if target.is_floating_point() else target
        return self.where_kept(self.loss.per_sample(logits, target, **extra), rows)

    def _by_softmax(self, form: SoftmaxForm, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        target = self.target[rows]
        label = target[:, None]
        leaves = _softmax_(logits, label, form, form.handicaps(target, logits.dtype))
        if coefficient is None:
            return Reading(self.where_kept(form.value(*leaves), rows))
        with torch.enable_grad():
            for leaf in leaves:
                leaf.requires_grad_()
            losses = self.where_kept(form.value(*leaves), rows)
            found = torch.autograd.grad(losses, (*leaves, *self.hyper), coefficient, allow_unused=True)
        slopes = [torch.zeros_like(losses) if slope is None else slope for slope in found[: len(leaves)]]
        hyper = found[len(leaves) :]
        if not form.reads_total:
            logits.scatter_add_(1, label, -torch.ones_like(losses)[:, None])
            return Reading(losses.detach(), form.scale * slopes[0], hyper)
        of_own, of_total = slopes
        spread = of_own + logits.shape[1] * of_total
        for block in blocks(logits, results=0):
            logits[block].mul_(spread[block, None]).sub_(of_total[block, None])
        logits.scatter_add_(1, label, -of_own[:, None])
        return Reading(losses.detach(), form.scale * torch.ones_like(of_own), hyper)

    def leave_out(self, absent: Tensor) -> None:
        """Keep no row that is absent, whatever its target is."""
        self.kept = ~absent if self.kept is None else self.kept & ~absent
        if self.index is not None:
            self.index = torch.where(self.kept.reshape(self.index.shape), self.index, -1)
        self.target = self.loss.kind.without(self.target, ~self.kept, 0)

    def where_kept(self, numbers: Tensor, rows: slice) -> Tensor:
        """The rows' numbers, with 0 for an ignored row."""
        return numbers if self.kept is None else torch.where(self.kept[rows], numbers, 0)


def _softmax_(logits: Tensor, label: Tensor, form: SoftmaxForm, handicap: Tensor | None) -> tuple[Tensor, ...]:
    """Replace the logits by the softmax of the form's scores, in place.

    Torch's own softmax reads a row once for all its steps and all rows in one call, where steps of our own would each
    wait for every thread.

    Returns:
        The label's cross-entropy, and, if the form reads it, the sum of the cross-entropies of all labels.
    """
    classes = logits.shape[1]
    total = logits.new_empty(len(logits)) if form.reads_total else None
    if form.reads_total or not form.reads_logits_as_they_are:
        for block in blocks(logits, results=0):
            z = logits[block]
            z.sub_(z.amax(dim=1, keepdim=True))
            form.score_(z, label[block], None if handicap is None else handicap[block])
            if total is not None:
                torch.sum(z, dim=1, out=total[block])
    top = logits.amax(dim=1)
    below = top - logits.gather(1, label)[:, 0]
    torch.softmax(logits, dim=1, out=logits)
    # The largest probability is exp(0) over the sum, so the sum needs no pass of its own.
    log_mass = -logits.amax(dim=1).log()
    own = log_mass + below
    return (own,) if total is None else (own, classes * (log_mass + top) - total)


def plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


@dataclass(frozen=True)
class Plan:
    """How a linear layer and its reader are run: the rows of a chunk, the products' dtype, the gradients wanted.

    ``wanted`` says for hidden, weight and bias, in this order, whether a gradient is needed.
    """

    chunk: int
    compute: torch.dtype
    wanted: tuple[bool, bool, bool]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which logits are read and gradients summed."""
        return torch.float32 if self.compute in HALF else self.compute


Run = tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor | None]]
"""The losses, the sums that become the layer's gradients, and the gradients in ``hyper``."""
Layer = tuple[Float[Tensor, "n d"], Float[Tensor, "classes d"], Float[Tensor, " classes"] | None]
