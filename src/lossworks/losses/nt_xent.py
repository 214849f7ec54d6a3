"""Two views of one row together, all other rows apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_positive, check_same_shape
from lossworks.losses.feature_separation import FeatureSeparationLoss
from lossworks.roles import cite

__all__ = ["nt_xent_loss"]


@cite("chen2020simclr", "du2023wad")
def nt_xent_loss(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], temperature: float | Tensor = 0.5
) -> Float[Tensor, ""]:
    r"""The contrastive loss of SimCLR: each of the 2n views is told its other view from all the rest.

    .. math::
        \frac{1}{2n} \sum_{i=1}^{2n} -\log
        \frac{e^{\cos(z_i, z_{\bar i}) / \tau}}{\sum_{a \ne i} e^{\cos(z_i, z_a) / \tau}}

    It is :class:`FeatureSeparationLoss` with each row as a class of its own. It couples its batch, so gather the views
    of one that is split.

    Args:
        first: ``(n, d)``, features of one view of each row.
        second: ``(n, d)``, features of the other view.
        temperature: :math:`\tau`, a difference of cosines, > 0.

    Raises:
        ValueError: ``temperature <= 0``, shapes that don't match.

    Papers: chen2020simclr, du2023wad

    >>> nt_xent_loss(torch.eye(2), torch.eye(2), temperature=0.1) < 1e-3
    tensor(True)
    """
    check_floating("first", first)
    check_floating("second", second)
    check_same_shape(first, second, names=("first", "second"))
    check_positive("temperature", temperature)
    if first.ndim != 2:
        raise ValueError(f"first must have shape (n, d), got {tuple(first.shape)}")
    pairs = torch.arange(len(first), device=first.device).repeat(2)
    return FeatureSeparationLoss(temperature)(torch.cat([first, second]), pairs)
