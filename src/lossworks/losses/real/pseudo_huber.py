"""Pseudo-Huber loss on the distance of whole rows."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_positive, check_same_shape
from lossworks.roles import Loss, check_no_nan


class PseudoHuberLoss(Loss):
    r"""Distance of two rows, rounded off at zero: like the square where they are near, linear where they are far.

    .. math::
        \ell(a, b) = \sqrt{\lVert a - b \rVert_2^2 + c^2} - c

    The norm is over all numbers of a row together, as in the paper; applied element by element, as some ports do, it is
    another loss. Far below c it is :math:`\lVert a - b \rVert^2 / 2c`; ``c -> 0`` is the norm itself. The gradient's
    norm stays below 1.

    Args:
        c: Where the loss turns from square to linear, in units of the norm, > 0. Without it :math:`0.00054 \sqrt d`,
            with d the numbers a row, which the authors took for images scaled to [-1, 1]; for one target of unit scale
            take about 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n,)`` or ``(n, d1, ...)``, floating-point.
        - returns ``()``, or ``(n,)`` with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``c <= 0``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it for consistency training, and for vectors with outliers; for a mean of squares ``c`` far above the residuals
    does.

    Papers: song2023ict

    >>> PseudoHuberLoss(c=1e-6)(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor(5.0000)
    """

    papers = ("song2023ict",)
    helps = ("outliers",)
    kind = "real"
    rowwise = True
    settings = ({"c": 1.0}, {"c": 0.2}, {})

    def __init__(self, c: float | Tensor | None = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.c = None if c is None else check_positive("c", c)

    def rows(
        self, output: Float[Tensor, "n *rest"], target: Float[Tensor, "n *rest"], index: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], None]:
        """The loss of each row; none is left out."""
        check_floating("output", output)
        check_floating("target", target)
        check_same_shape(output, target)
        if not output.ndim:
            raise ValueError("output must have shape (n,) or (n, d1, ...), got a 0-d tensor")
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        squares = (output - target.to(output.dtype)).square()
        losses = self._of_squared_norm(
            squares.flatten(1).sum(dim=1) if output.ndim > 1 else squares, output[:1].numel()
        )
        check_no_nan(output, losses)
        return losses, None

    def total_of(self, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The number of rows, or the sum of their weights."""
        return super().total_of(target.flatten(1)[:, 0] if target.ndim > 1 else target, sample_weight)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row of one number."""
        return self._of_squared_norm((output - target).square(), 1)

    def _of_squared_norm(self, squared: Tensor, size: int) -> Tensor:
        c = 0.00054 * math.sqrt(size) if self.c is None else self.c
        return squared / ((squared + c * c).sqrt() + c)
