"""How the rows of a chunk of logits are read."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import checks
from lossworks.fused.chunks import blocks
from lossworks.roles import ClosedForm, Loss, Offers, SoftmaxForm, held_back, remember_over_ranks
from lossworks.roles.memory import each_once

__all__ = ["HALF", "Layer", "LossReader", "Plan", "Reader", "Reading", "Run"]

HALF = (torch.float16, torch.bfloat16)


@dataclass
class Reading:
    """What was read of a chunk whose logits have become their gradient, less a factor for each row.

    ``losses`` are the rows' values, ``factor`` what each row of the chunk must yet be multiplied with (None for 1) and
    ``hyper`` the gradients in the tensors that the reader learns.
    """

    losses: Tensor
    factor: Float[Tensor, " rows"] | None = None
    hyper: Sequence[Tensor | None] = ()


class Reader:
    """How the rows of a chunk are read; the loop below knows no more of a loss than this."""

    hyper: tuple[Tensor, ...] = ()
    """The tensors beside the layer that are to have a gradient."""
    tail: tuple[int, ...] = ()
    """The shape of one row's losses: () where it has one."""
    remembers_nothing: bool = True
    """Whether reading a row twice is reading the same."""

    scale: float | Tensor = 1.0
    """What the logits are multiplied with before they are read."""
    shift: Tensor | None = None
    """What is added to each class's logit then."""
    logits: str = "hidden @ weight.T"
    """What they are by the names of the caller's arguments."""

    def read(self, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        """The losses of these rows; with a coefficient for each, their sum's gradient in place of the logits too."""
        raise NotImplementedError

    def trace(self, logits: Tensor, rows: slice) -> Tensor:
        """The losses of these rows in plain operations."""
        raise NotImplementedError

    @property
    def read_again(self) -> tuple[Tensor, ...]:
        """What a second reading needs as it was, beside the layer and ``hyper``: not to be changed in place before."""
        return ()

    @contextlib.contextmanager
    def standing(self, hyper: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Read as when the reader was made, with these in place of its own ``hyper`` if given."""
        yield

    def is_nan(self, layer: "Layer", rows: Tensor) -> bool:
        """Whether the logits of some of these rows are NaN, and not the losses alone."""
        hidden, weight, bias = (None if given is None else given.detach() for given in layer)
        assert hidden is not None
        assert weight is not None
        logits = hidden[rows].to(weight.dtype) @ weight.T
        return bool((logits if bias is None else logits + bias).isnan().any())

    def finish(self) -> None:
        """Called when all rows have been read and found to be numbers."""

    def sum_hidden(self, gradient: Tensor) -> None:
        """Called with the gradient in hidden, to add in place what others hold of it where the classes are sharded."""


@dataclass
class LossReader(Reader):
    """The rows of a loss: by its closed form where it has one, else by autograd on blocks that fit the cache."""

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
        if self.softmax is not None:
            self.scale, self.shift = self.softmax.scale, self.softmax.shift
        self.remembers_nothing = self.index is None
        self._held: list[tuple[dict[str, Any], str, Tensor | None]] = [
            (tensors, name, tensor)
            for module in self.loss.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
        ]
        self.each_once = False
        if self.index is not None and not torch.compiler.is_compiling():
            with checks():  # a question worth waiting for on any device: where a row comes twice, all are held
                self.each_once = each_once(self.index)

    @property
    def softmax(self) -> SoftmaxForm | None:
        """The loss's closed form, if it is of the softmax family."""
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
                with checks(False):  # the caller has looked at the targets, and looks at the losses
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
        """The rows' memory is updated once, when every row has been read from what was remembered before."""
        if self.index is not None and self.memory is not None and self.unfinished and self.loss.training:
            remember_over_ranks(self.loss, self.offers, None)
            self.loss.keep(self.index, self.memory)
            self.offers = []
        self.unfinished = False

    def _extra(self, logits: Tensor, rows: slice) -> dict[str, Tensor]:
        """The rows' numbers and what is remembered of them, which all rows read as it was before the first."""
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
            return self.loss.rows(logits, target)[0]
        target = target.to(logits.dtype) if target.is_floating_point() else target
        return self.where_kept(self.loss.per_sample(logits, target, **extra), rows)

    def _by_softmax(self, form: SoftmaxForm, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        target = self.target[rows]
        label = target[:, None]
        handicap = form.handicaps(target, logits.dtype)
        if handicap is not None:
            logits.scatter_add_(1, label, handicap[:, None])
        leaves = _softmax(logits, label, form.reads_total)
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
            logits.scatter_add_(1, label, -torch.ones_like(label, dtype=logits.dtype))
            return Reading(losses.detach(), form.scale * slopes[0], hyper)
        of_own, of_total = slopes
        spread = of_own + logits.shape[1] * of_total
        for block in blocks(logits):
            logits[block].mul_(spread[block, None]).sub_(of_total[block, None])
        logits.scatter_add_(1, label, -of_own[:, None])
        return Reading(losses.detach(), form.scale * torch.ones_like(of_own), hyper)

    def where_kept(self, numbers: Tensor, rows: slice) -> Tensor:
        """The rows' numbers, 0 where a row is ignored."""
        return numbers if self.kept is None else torch.where(self.kept[rows], numbers, 0)


def _softmax(logits: Tensor, label: Tensor, reads_total: bool) -> tuple[Tensor, ...]:
    """Turn the logits into probabilities, in place; the label's cross-entropy, and the sum of it over all labels."""
    own = logits.new_empty(len(logits))
    total = own.new_empty(own.shape if reads_total else 0)
    scratch = logits.new_empty(0)  # made once: fresh pages for each block would cost as much as the softmax
    for block in blocks(logits):
        z = logits[block]
        scratch = scratch if scratch.numel() >= z.numel() else torch.empty_like(z)
        if reads_total:
            z.sub_(z.amax(dim=1, keepdim=True))
        top = z.amax(dim=1)
        score = z.gather(1, label[block]).squeeze(1)
        probability = torch.softmax(z, dim=1, out=scratch[: len(z)])
        # The largest probability is exp(0) over the sum, so the sum needs no pass of its own.
        log_sum = -probability.amax(dim=1).log()
        own[block] = log_sum + (top - score)
        if reads_total:
            total[block] = z.shape[1] * log_sum - z.sum(dim=1)
        z.copy_(probability)
    return (own, total) if reads_total else (own,)


def plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


@dataclass(frozen=True)
class Plan:
    """How a linear layer and its reader are run: rows of a chunk, the products' dtype, and what is asked for.

    ``wanted`` says of hidden, weight and bias in turn whether a gradient is.
    """

    chunk: int
    compute: torch.dtype
    wanted: tuple[bool, bool, bool]

    @property
    def dtype(self) -> torch.dtype:
        """What the logits are read in, and gradients summed in."""
        return torch.float32 if self.compute in HALF else self.compute


Run = tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor | None]]
"""The losses, the sums that become the layer's gradients, and the gradients in ``hyper``."""
Layer = tuple[Float[Tensor, "n d"], Float[Tensor, "classes d"], Float[Tensor, " classes"] | None]
