"""The loss of expected counts."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.roles import COUNTS, Loss

__all__ = ["PoissonLoss"]

LARGEST = 30.0
"""The logarithm of the expected count from which on the loss goes on along its tangent."""


class PoissonLoss(Loss):
    r"""Half the Poisson deviance of counts, where the output is the logarithm of the expected count.

    .. math::
        \ell(z, y) = e^z - y z + y \log y - y

    It is how far the log-likelihood falls short of that of a perfect fit, and 0 where :math:`e^z = y`. Its gradient,
    :math:`e^z - y`, is that of :class:`torch.nn.PoissonNLLLoss`, which leaves out the terms of y alone. From
    :math:`z = 30` on, an expected count of :math:`10^{13}`, the exponential goes on along its tangent, so that the loss
    stays finite at every output that a network gives.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: logarithms of expected counts ``(n, ...)``; target: counts >= 0 in the same shape, of any real dtype.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least 0.

    Raises:
        ValueError: shapes that don't match, a target that is negative or not finite.

    Use it for counts, such as claims, visits or defects, and for amounts >= 0 whose spread grows with their mean. The
    target need not be whole, and may be in any unit, such as that of its mean. Not for counts with many more zeros, or
    a much larger spread, than Poisson's law has: the mean is fitted all the same, but no error bar is.

    Papers: nelder1972glm

    >>> loss = PoissonLoss()
    >>> loss(torch.tensor([2.0, 3.0]).log(), torch.tensor([2.0, 3.0])).abs() < 1e-6
    tensor(True)
    """

    papers = ("nelder1972glm",)
    helps = ("counts", "baseline")
    kind = COUNTS
    rowwise = True

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        capped = output.clamp(max=LARGEST)
        expected = capped.exp() * (1 + (output - capped))
        return expected - target * output + torch.xlogy(target, target) - target
