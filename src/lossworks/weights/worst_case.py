"""The shared form of weights that look for the worst distribution over the rows."""

import math
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from lossworks.checks import as_float, check_floating, readable
from lossworks.pages import keep_freed_pages
from lossworks.roles import Weighting

__all__ = ["Solution", "WorstCaseWeights", "check_losses"]


class Solution(NamedTuple):
    r"""The solution of the inner maximum over the weights.

    Attributes:
        value: :math:`\max_w \tfrac1n \sum_i w_i \ell_i` less the price on w where there is one, ``()``.
        weights: The weights that reach it, ``(n,)``, of mean 1.
        dual: The dual variable that gives the same value, ``()``; each class says what it is.
    """

    value: Float[Tensor, ""]
    weights: Float[Tensor, " n"]
    dual: Float[Tensor, ""]


class WorstCaseWeights(Weighting):
    """Base of weights that solve an inner maximum over a batch; a subclass defines :meth:`_solve`, in float64.

    The weights depend on the whole batch: see :meth:`lossworks.Objective.weigh` for batches that come in pieces.
    """

    couples_batch = True
    helps: ClassVar[tuple[str, ...]] = ("worst case", "shift", "imbalance")

    def solve(self, losses: Float[Tensor, " n"]) -> Solution:
        """The inner maximum, solved exactly: its value, the weights that reach it, and the dual variable.

        All three have derivatives in the losses and in hyperparameters that are tensors.
        """
        check_losses(losses, empty=False)
        if readable(losses):
            keep_freed_pages()
        return Solution(*(self._given(part, losses) for part in self._solve(losses)))

    def _solve(self, losses: Float[Tensor, " n"]) -> Solution:
        raise NotImplementedError(f"{type(self).__name__} must define _solve(losses) -> Solution")

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The worst weights of these rows."""
        check_losses(losses)
        if readable(losses):
            keep_freed_pages()
        weights = self._solve(losses.detach()).weights if len(losses) else losses.detach()
        return self._given(weights, losses)


def check_losses(losses: Tensor, *, empty: bool = True) -> None:
    """Raise unless these are one finite number a row, of at least one row unless they may be ``empty``."""
    check_floating("losses", losses)
    if losses.ndim != 1 or not (empty or len(losses)):
        raise ValueError(f"losses must have shape (n,){'' if empty else ' with n >= 1'}, got {tuple(losses.shape)}")
    if readable(losses) and not math.isfinite(float(losses.detach().sum())):  # one check for all rows
        rows = (~losses.detach().isfinite()).nonzero().flatten()
        if len(rows):
            named = ", ".join(str(int(row)) for row in rows[:3])
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            raise ValueError(f"losses must be finite, got {float(losses.detach()[rows[0]]):g} in row {named}{more}")


def descending(losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The losses from the largest to the smallest, in float64."""
    if not followed(losses):  # numpy's sort returns no order beside the values: about fifty times faster
        return torch.from_numpy(np.sort(in_numpy(losses))[::-1].astype(np.float64)).to(losses.device)
    return losses.double().sort(descending=True).values


def in_numpy(losses: Float[Tensor, " n"]) -> NDArray[np.floating]:
    """The losses in numpy: as float32 where they are that, which sorts in half the time, else as float64."""
    return (losses if losses.dtype == torch.float32 else losses.double()).numpy(force=True)


def number_of(losses: Float[Tensor, " n"], number: float | Tensor) -> float | Float[Tensor, ""]:
    """The hyperparameter as a float where neither it nor the losses are followed, else as from :func:`number_like`."""
    if followed(losses) or (isinstance(number, Tensor) and followed(number)):
        return number_like(losses, number)
    return as_float(number)


def followed(tensor: Tensor) -> bool:
    """Whether a solution must stay in torch: the values may not be read, or derivatives in them may be asked for."""
    if not readable(tensor):
        return True
    return (tensor.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(tensor).tangent is not None


def rank(number: int, like: Tensor) -> Float[Tensor, " n"]:
    """1, 2, ..., n in float64 on this tensor's device."""
    return torch.arange(1, number + 1, dtype=torch.float64, device=like.device)


def number_like(losses: Tensor, number: float | Tensor) -> Float[Tensor, ""]:
    """The hyperparameter in float64 on the losses' device."""
    return torch.as_tensor(number, dtype=torch.float64, device=losses.device)
