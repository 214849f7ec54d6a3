"""Closed forms: how a loss gives its value and its gradient in the logits without autograd."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["ClosedForm", "RowForm", "SoftmaxForm"]


class ClosedForm(ABC):
    """A loss's value and its gradient in a row's logits as formulas, for targets that are classes.

    A loss returns one from :meth:`Loss.closed_form`: a :class:`SoftmaxForm` if it depends on a row only through its
    softmax, otherwise a :class:`RowForm`. The fused losses and the engine of :func:`lossworks.compare` use it.

    Attributes:
        gradient: A function from logits and classes to the gradient ``(n, C)``, if this is cheaper than autograd where
            only the gradient is needed; otherwise None.
    """

    gradient: Callable[[Tensor, Tensor], Tensor] | None

    @property
    @abstractmethod
    def follows_learning(self) -> bool:
        """Whether gradients in learned hyperparameters can be computed together with the gradient in the logits."""

    @abstractmethod
    def value_and_gradient(
        self,
        output: Float[Tensor, "n classes"],
        target: Int[Tensor, " n"],
        memory: Shaped[Tensor, "n *rest"] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        """Each row's loss and its gradient in the row's logits; neither is recorded by autograd.

        Args:
            output: The logits, which are not changed.
            target: The classes.
            memory: The result of :meth:`Loss.recall` for these rows, if the loss has a memory.
        """


@dataclass(frozen=True)
class SoftmaxForm(ClosedForm):
    r"""Closed form of the softmax family: the loss is a function of one or two numbers of a row's softmax.

    .. math::
        \ell(z, y) = g\Big({-\log p_y},\; {-\sum_k \log p_k}\Big), \qquad
        p = \mathrm{softmax}\big(a z + b + c_y [k = y]\big)

    Args:
        value: :math:`g`, a differentiable function of the first number ``(n,)`` and, with ``reads_total``, of the
            second.
        scale: :math:`a`, a number or a 0-d tensor.
        shift: :math:`b`, ``(C,)``.
        handicap: :math:`c`, a number or a 0-d tensor, or ``(C,)`` by the target's class.
        reads_total: Whether :math:`g` takes the second number too.
        gradient: A function from logits and classes to the gradient alone, if this is cheaper than autograd.
    """

    value: Callable[..., Tensor]
    scale: float | Tensor = 1.0
    shift: Tensor | None = None
    handicap: float | Tensor | None = None
    reads_total: bool = False
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def follows_learning(self) -> bool:
        """True if all learned hyperparameters are inside :math:`g`."""
        held = (self.scale, self.shift, self.handicap)
        return not any(isinstance(number, Tensor) and number.requires_grad for number in held)

    def handicaps(self, target: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"] | None:
        """The number that is added to each row's label score, or None."""
        if self.handicap is None:
            return None
        if not isinstance(self.handicap, Tensor):
            return torch.full(target.shape, self.handicap, dtype=dtype, device=target.device)
        held = self.handicap.to(dtype=dtype, device=target.device)
        return held[target] if held.ndim else held.expand(len(target))

    @property
    def reads_logits_as_they_are(self) -> bool:
        """True if the scale is 1 and nothing is added, so that the scores are the logits."""
        unscaled = isinstance(self.scale, float) and self.scale == 1
        return unscaled and self.shift is None and self.handicap is None

    def score_(
        self,
        z: Float[Tensor, "n classes"],
        label: Int[Tensor, "n 1"],
        handicap: Float[Tensor, " n"] | None,
        classes: slice = slice(None),
    ) -> None:
        """Turn logits into scores, in place; of a shard, ``classes`` are its own, and the handicaps of others are 0.

        Each row's largest logit must be off already, so that a number which all logits share costs no digits.
        """
        if not isinstance(self.scale, float) or self.scale != 1:
            z.mul_(self.scale)
        if self.shift is not None:
            z.add_(self.shift[classes].to(z.dtype))
        if handicap is not None:
            z.scatter_add_(1, label, handicap[:, None])

    @torch.no_grad()
    def value_and_gradient(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], memory: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        """See :class:`ClosedForm`."""
        label, score = target[:, None], output
        if output.shape[1] and not self.reads_logits_as_they_are:
            score = output - output.amax(dim=1, keepdim=True)
            self.score_(score, label, self.handicaps(target, output.dtype))
        log_p = score.log_softmax(dim=1)
        read = (-log_p.gather(1, label).squeeze(1), -log_p.sum(dim=1))[: 1 + self.reads_total]
        with torch.enable_grad():
            leaves = [number.requires_grad_() for number in read]
            value = self.value(*leaves)
            found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        slopes = [torch.zeros_like(read[0]) if slope is None else slope for slope in (*found, None)]
        own, total = slopes[:2]
        gradient = log_p.exp() * (own + output.shape[1] * total)[:, None] - total[:, None]
        return value.detach(), gradient.scatter_add(1, label, -own[:, None]) * self.scale


@dataclass(frozen=True)
class RowForm(ClosedForm):
    """Closed form by a function of the rows that gives both value and gradient.

    Args:
        function: A function of logits and classes, and with ``remembers`` of the rows' memory, to the losses ``(n,)``
            and the gradient ``(n, C)``. It must not change its arguments, and is called without autograd.
        remembers: Whether the function needs the rows' memory.
        gradient: A function from logits and classes to the gradient alone, if this is cheaper than autograd.
    """

    function: Callable[..., tuple[Tensor, Tensor]]
    remembers: bool = False
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def follows_learning(self) -> bool:
        """Always False."""
        return False

    @torch.no_grad()
    def value_and_gradient(
        self,
        output: Float[Tensor, "n classes"],
        target: Int[Tensor, " n"],
        memory: Shaped[Tensor, "n *rest"] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        """See :class:`ClosedForm`.

        Raises:
            ValueError: the loss has a memory but ``memory`` is not given.
        """
        if not self.remembers:
            return self.function(output, target)
        if memory is None:
            raise ValueError("memory must be what the loss's recall gave for these rows, got None")
        return self.function(output, target, memory)
