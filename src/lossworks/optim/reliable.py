"""Test-time adaptation: entropy minimisation on unlabelled rows, and only on those that the model is sure enough of."""

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
"""By default a row is reliable if its entropy is below this share of the largest possible entropy, log(C)."""


@cite("yu2025csfa", helps=("shift",))
def reliable_entropy_mask(
    output: Float[Tensor, "n classes"], e0: float | None = None
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    r"""Find the rows whose predictions are reliable (of low entropy), and give every row's entropy.

    .. math:: H_i = -\sum_k p_{ik} \log p_{ik} < E_0, \qquad p = \mathrm{softmax}(z)

    Args:
        output: Logits.
        e0: The threshold :math:`E_0`, in nats, > 0, may be infinite; ``0.4 * log(C)`` by default.

    Shape:
        - output ``(n, C)``; returns a mask ``(n,)`` bool and the entropies ``(n,)``, which carry a gradient.

    Raises:
        ValueError: output of another shape, ``e0 <= 0``.
        TypeError: output that is not floating-point.

    Use it to leave out rows of high entropy, which would lead an adaptation astray.

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
    r"""RSGS: test-time adaptation by sharpness-aware entropy minimisation (:class:`GSAM`) on the reliable rows.

    .. math::
        L(\theta) = \operatorname{mean}_{i \in S} H_i(\theta), \qquad S = \{i : H_i(\theta) < E_0\}

    At the worst point, those rows of S that are reliable there too are counted. If there are none, no step is taken.
    The mean is over the reliable rows at hand, so a split over ranks weights rows
    differently: give it whole batches.

    Args:
        optimizer: A torch optimizer of what is adapted, usually the scales and shifts of the normalisation layers.
        rho: The ball's radius, in the units of the weights, >= 0.
        alpha: The weight of the orthogonal part, >= 0.
        e0: The threshold :math:`E_0`, in nats, > 0, may be infinite; ``0.4 * log(C)`` by default.
        model: The model whose buffers the second pass must leave unchanged.

    Shape:
        - closure: a function without arguments that returns the logits ``(n, C)``; it does not call ``backward``.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer or is L-BFGS; a closure that returns no logits.
        ValueError: ``rho < 0``, ``alpha < 0``, ``e0 <= 0``.

    Use it to adapt a trained model to a stream of rows without labels. On shifted digits it did not improve on what new
    batch statistics alone gain.

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
    takes_outputs = True

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
        """Take one step if a row is reliable at both points; return the mean entropy of the reliable rows."""
        if closure is None:
            if self._makes_state(closure):
                self.inner.step()
                return torch.zeros(())
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
        return loss.detach()
