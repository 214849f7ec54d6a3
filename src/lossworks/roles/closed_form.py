"""How a loss offers its gradient in the logits in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["ClosedForm", "RowForm", "SoftmaxForm"]


class ClosedForm(ABC):
    """The value and the gradient of a loss in a row's logits, written out for a class as target.

    A loss gives one by :meth:`Loss.closed_form`: a :class:`SoftmaxForm` where it reads a row through its softmax alone,
    otherwise a :class:`RowForm`. The fused losses and the engine of :func:`lossworks.compare` ask for it.

    Attributes:
        gradient: The gradient ``(n, C)`` by logits and classes, where it alone costs less than by autograd, or None.
    """

    gradient: Callable[[Tensor, Tensor], Tensor] | None

    @property
    @abstractmethod
    def follows_learning(self) -> bool:
        """Whether gradients in hyperparameters that learn can be had beside that in the logits."""

    @abstractmethod
    def value_and_gradient(
        self,
        output: Float[Tensor, "n classes"],
        target: Int[Tensor, " n"],
        memory: Shaped[Tensor, "n *rest"] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        """Each row's loss and its gradient in the row's logits; neither is recorded by autograd.

        Args:
            output: The logits, which stay as they are.
            target: The classes.
            memory: What :meth:`Loss.recall` gave for these rows, where the loss has a memory.
        """


@dataclass(frozen=True)
class SoftmaxForm(ClosedForm):
    r"""A loss as a function of one or two numbers of a row, through which its gradient has a closed form.

    .. math::
        \ell(z, y) = g\Big({-\log p_y},\; {-\sum_k \log p_k}\Big), \qquad
        p = \mathrm{softmax}\big(a z + b + c_y [k = y]\big)

    Args:
        value: :math:`g`, of the first number ``(n,)``, and of the second too where ``reads_total``; differentiable.
        scale: :math:`a`, a number or a 0-d tensor.
        shift: :math:`b`, ``(C,)``.
        handicap: :math:`c`, a number or a 0-d tensor, or ``(C,)`` by the target's class.
        reads_total: Whether :math:`g` takes the second number.
        gradient: The gradient alone, where it costs less than by autograd.
    """

    value: Callable[..., Tensor]
    scale: float | Tensor = 1.0
    shift: Tensor | None = None
    handicap: float | Tensor | None = None
    reads_total: bool = False
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def follows_learning(self) -> bool:
        """Where what learns is in :math:`g` alone."""
        held = (self.scale, self.shift, self.handicap)
        return not any(isinstance(number, Tensor) and number.requires_grad for number in held)

    def handicaps(self, target: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"] | None:
        """What is added to each row's label, if anything."""
        if self.handicap is None:
            return None
        if not isinstance(self.handicap, Tensor):
            return torch.full(target.shape, self.handicap, dtype=dtype, device=target.device)
        held = self.handicap.to(dtype=dtype, device=target.device)
        return held[target] if held.ndim else held.expand(len(target))

    @torch.no_grad()
    def value_and_gradient(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], memory: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        """See :class:`ClosedForm`."""
        label, handicap = target[:, None], self.handicaps(target, output.dtype)
        score = output * self.scale if self.shift is None else output * self.scale + self.shift.to(output.dtype)
        score = score if handicap is None else score.scatter_add(1, label, handicap[:, None])
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
    """Value and gradient by a function of the rows.

    Args:
        function: Gives the losses ``(n,)`` and the gradient ``(n, C)`` for logits and classes, which it leaves as they
            are, and for the rows' memory where ``remembers``. It is called without autograd.
        remembers: Whether it needs the rows' memory.
        gradient: The gradient alone, where it costs less than by autograd.
    """

    function: Callable[..., tuple[Tensor, Tensor]]
    remembers: bool = False
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def follows_learning(self) -> bool:
        """Never."""
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
            ValueError: the loss has a memory and is not given it.
        """
        if not self.remembers:
            return self.function(output, target)
        if memory is None:
            raise ValueError("memory must be what the loss's recall gave for these rows, got None")
        return self.function(output, target, memory)
