"""Pseudo-Huber loss on the distance between whole rows."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_positive, check_same_shape, wide
from lossworks.roles import REAL, Loss, check_no_nan


class PseudoHuberLoss(Loss):
    r"""Pseudo-Huber loss on the distance between two rows: quadratic where they are near, linear where they are far.

    .. math::
        \ell(a, b) = \sqrt{\lVert a - b \rVert_2^2 + c^2} - c

    The norm is taken over all numbers of a row together, as in the paper. Some ports apply the formula to each element
    instead, which is another loss. For distances far below c the loss is :math:`\lVert a - b \rVert^2 / 2c`; as
    ``c -> 0`` it becomes the norm itself. The gradient's norm stays below 1.

    Args:
        c: The distance at which the loss turns from quadratic to linear, in units of the norm, > 0. By default it is
            :math:`0.00054 \sqrt d`, where d is how many numbers a row has; the authors use this for images scaled to
            [-1, 1]. For a single target of unit scale take about 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output and target: ``(n,)`` or ``(n, d1, ...)``, floating-point.
        - returns ``()``, or ``(n,)`` with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``c <= 0``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it for consistency training and for vectors with outliers. With ``c`` far above the residuals it fits like the
    squared error.

    Papers: song2023ict

    >>> PseudoHuberLoss(c=1e-6)(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor(5.0000)
    """

    papers = ("song2023ict",)
    helps = ("outliers",)
    kind = REAL
    rowwise = True
    settings = ({"c": 1.0}, {"c": 0.2}, {})

    def __init__(self, c: float | Tensor | None = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.c = None if c is None else check_positive("c", c)

    def rows(
        self, output: Float[Tensor, "n *rest"], target: Float[Tensor, "n *rest"], index: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], None]:
        """The loss of each row; no row is left out."""
        check_floating("output", output)
        check_floating("target", target)
        check_same_shape(output, target)
        if not output.ndim:
            raise ValueError("output must have shape (n,) or (n, d1, ...), got a 0-d tensor")
        output = wide(output)
        squares = (output - target.to(output.dtype)).square()
        losses = self._of_squared_norm(
            squares.flatten(1).sum(dim=1) if output.ndim > 1 else squares, output[:1].numel()
        )
        check_no_nan(output, losses)
        return losses, None

    def row_shape(self, target: Tensor) -> torch.Size:
        """One row for each entry of the first axis."""
        return target.shape[:1]

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row, for rows of a single number."""
        return self._of_squared_norm((output - target).square(), 1)

    def _of_squared_norm(self, squared: Tensor, size: int) -> Tensor:
        c = 0.00054 * math.sqrt(size) if self.c is None else self.c
        return squared / ((squared + c * c).sqrt() + c)
