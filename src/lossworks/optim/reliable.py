"""Adaptation by entropy to rows without labels, on those rows alone that the model is sure enough of."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from lossworks.checks import check_floating, check_positive
from lossworks.optim.sharpness import GSAM
from lossworks.roles import cite

__all__ = ["RSGS", "reliable_entropy_mask"]

SHARE = 0.4
"""The share of the largest entropy up to which a row is reliable, by default."""


@cite("yu2025csfa", helps=("shift",))
def reliable_entropy_mask(
    output: Float[Tensor, "n classes"], e0: float | None = None
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    r"""Which rows the model is sure of, and how unsure it is of each.

    .. math:: H_i = -\sum_k p_{ik} \log p_{ik} < E_0, \qquad p = \mathrm{softmax}(z)

    Args:
        output: Logits.
        e0: :math:`E_0`, in nats, > 0, may be infinite; ``0.4 * log(C)`` by default.

    Shape:
        - output ``(n, C)``; returns ``(n,)`` bool and the entropies ``(n,)`` with their gradient.

    Raises:
        ValueError: output of another shape, ``e0 <= 0``.
        TypeError: output that is not floating-point.

    Use it to leave out rows whose entropy would lead an adaptation astray.

    Papers: yu2025csfa

    >>> reliable_entropy_mask(torch.tensor([[9.0, 0.0], [0.0, 0.0]]))[0]
    tensor([ True, False])
    """
    check_floating("output", output)
    if output.ndim != 2 or not output.shape[1]:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    if e0 is None:
        e0 = SHARE * math.log(output.shape[1])
    elif not (isinstance(e0, float) and e0 == math.inf):
        check_positive("e0", e0)
    logs = output.float().log_softmax(dim=1) if output.dtype.itemsize < 4 else output.log_softmax(dim=1)
    entropy = -(logs.exp() * torch.where(logs.isfinite(), logs, 0.0)).sum(dim=1)
    return entropy.detach() < e0, entropy


class RSGS(GSAM):
    r"""Reliable surrogate gap sensitivity: entropy minimisation by :class:`GSAM` on the rows that are reliable.

    .. math::
        L(\theta) = \operatorname{mean}_{i \in S} H_i(\theta), \qquad S = \{i : H_i(\theta) < E_0\}

    At the worst point the rows of S that are still reliable count. Where no row is, the step is left out. The mean is
    over the reliable rows at hand, so a split over ranks weighs rows differently: give it whole batches.

    Args:
        optimizer: Of what is to be adapted, usually the scales and shifts of the normalisation layers.
        rho: The ball's radius, in the units of the weights, >= 0.
        alpha: The share of the orthogonal part, >= 0.
        e0: :math:`E_0`, in nats, > 0; ``0.4 * log(C)`` by default.
        model: Whose buffers the second pass leaves alone.

    Shape:
        - closure: takes nothing, returns the logits ``(n, C)`` of the rows; it calls no ``backward``.

    Raises:
        TypeError: something that is no optimizer, or L-BFGS; a closure that returns no logits.
        ValueError: ``rho < 0``, ``alpha < 0``, ``e0 <= 0``.

    Use it to adapt a trained model to a stream of rows without labels. On digits with a shift, what new batch
    statistics gain it has not bettered.

    Papers: yu2025csfa

    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = RSGS(torch.optim.SGD(model.parameters(), lr=0.1), e0=1.0)
    >>> loss = optimizer.step(lambda: model(torch.ones(4, 3)))
    >>> optimizer.reliable
    4
    """

    papers = ("yu2025csfa",)
    helps = ("shift",)
    settings = ({}, {"e0": math.inf})
    own = ("reliable",)
    asks_rows = True

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float = 0.05,
        alpha: float = 0.2,
        *,
        e0: float | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer, rho, alpha, model=model)
        if e0 is not None and e0 != math.inf:
            check_positive("e0", e0)
        self.e0 = e0
        self.reliable = 0

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """One step, if a row is reliable at both points; the mean entropy of those that are at the first."""
        if closure is None:
            raise TypeError("closure must be a function that returns logits, got None")
        with torch.enable_grad():
            mask, entropy = reliable_entropy_mask(closure(), self.e0)
        self.reliable = int(mask.sum())
        loss = entropy[mask].sum() / max(self.reliable, 1)
        if not self.reliable:
            return loss.detach()
        self.zero_grad()
        loss.backward()
        self.ascend()
        try:
            with torch.enable_grad():
                still, there = reliable_entropy_mask(closure(), self.e0)
                both = mask & still
                worst = there[both].sum() / both.sum().clamp(min=1)
            worst.backward()
        finally:
            self._come_back()
        if bool(both.any()):
            self._combine()
            self.inner.step()
        self._clean = {}
        return loss.detach()
