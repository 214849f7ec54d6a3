"""The confidence above which pseudo-labels are used."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_between, check_finite, check_positive, check_probabilities
from lossworks.roles import cite

__all__ = ["dynamic_confidence_threshold"]


@cite("tarubinga2025cwbass", helps=("noisy labels",))
def dynamic_confidence_threshold(
    confidence: Float[Tensor, "*shape"],
    base: float | Tensor = 0.6,
    beta: float | Tensor = 0.5,
    low: float = 0.3,
    high: float = 0.8,
) -> Float[Tensor, ""]:
    r"""A confidence threshold for pseudo-labels that rises with the teacher's mean confidence.

    .. math:: T = \mathrm{clip}\big(b\, \sigma(\beta\, (\bar c - \tfrac12)),\; low,\; high\big)

    With the authors' values T is between 0.3 and 0.34 whatever the confidences are, so it is nearly constant, and below
    the confidence of most pseudo-labels: raise ``base`` and ``beta`` for it to have an effect. The mean is over all
    confidences given, so gather those of a batch that is split over ranks.

    Args:
        confidence: The largest class probability of each pixel or row, in [0, 1], of any shape, with at least one
            entry.
        base: The factor b, > 0.
        beta: :math:`\beta`, how steeply T rises, any finite number.
        low: The smallest value that T can have, in [0, 1].
        high: The largest value that T can have, in [``low``, 1].

    Returns:
        T, ``()``, without a gradient. Use the pseudo-labels whose confidence is above it.

    Raises:
        ValueError: ``base <= 0``, bounds outside [0, 1] or the wrong way round, a confidence outside [0, 1], no
            confidence at all.

    Papers: tarubinga2025cwbass

    >>> dynamic_confidence_threshold(torch.tensor([0.5, 0.9]), base=1.2, beta=4.0)
    tensor(0.8000)
    """
    check_probabilities("confidence", confidence)
    check_positive("base", base)
    check_finite("beta", beta)
    check_between("low", low, 0, 1)
    check_between("high", high, 0, 1)
    if high < low:
        raise ValueError(f"high must be at least low = {low:g}, got {high:g}")
    if not confidence.numel():
        raise ValueError("confidence must have at least one entry, got none")
    mean = confidence.detach().mean(dtype=torch.promote_types(confidence.dtype, torch.float32))
    return (base * torch.sigmoid(beta * (mean - 0.5))).clamp(low, high)
