"""Contrastive losses without labels: two views of one row together, all other rows apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_positive, check_same_shape, readable
from lossworks.embed.feature_separation import FeatureSeparationLoss
from lossworks.roles import cite, directions

__all__ = ["infonce_loss", "nt_xent_loss"]


@cite("chen2020simclr", "du2023wad")
def nt_xent_loss(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], temperature: float | Tensor = 0.5
) -> Float[Tensor, ""]:
    r"""The NT-Xent contrastive loss (SimCLR): pulls two views of one row together and pushes all other rows apart.

    .. math::
        \frac{1}{2n} \sum_{i=1}^{2n} -\log
        \frac{e^{\cos(z_i, z_{\bar i}) / \tau}}{\sum_{a \ne i} e^{\cos(z_i, z_a) / \tau}}

    It is :class:`FeatureSeparationLoss` with each row as a class of its own. It compares the rows of a batch, so gather
    the views first if the batch is split.

    Args:
        first: ``(n, d)``, features of one view of each row.
        second: ``(n, d)``, features of the other view.
        temperature: The temperature :math:`\tau`, in units of the cosine, > 0.

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
    for name, rows in (("first", first), ("second", second)):
        if readable(rows) and bool(rows.detach().isnan().any()):
            raise ValueError(f"{name} has NaN in row {int(rows.isnan().any(dim=1).nonzero()[0])}")
    pairs = torch.arange(len(first), device=first.device).repeat(2)
    return FeatureSeparationLoss(temperature)(torch.cat([first, second]), pairs)


@cite("oord2018cpc", "lei2025rrcm")
def infonce_loss(
    features: Float[Tensor, "n d"], partner: Float[Tensor, "n d"], tau: float | Tensor = 0.2
) -> Float[Tensor, " n"]:
    r"""The InfoNCE contrastive loss: pulls each row towards its own partner and away from the other rows' partners.

    .. math::
        \ell_i = \log \sum_k e^{\cos(f_i, t_k) / \tau} - \cos(f_i, t_i) / \tau

    It lies in :math:`[0, \log n + 2 / \tau]`, and is :math:`\log n` where all cosines are equal. The lengths of the
    rows don't matter. Unlike in :func:`nt_xent_loss`, a row is not compared with the other rows of ``features``.
    Gradients flow into both ``features`` and ``partner``: detach ``partner`` if a target network computed it. The loss
    compares the rows of a batch, so gather both tensors first if the batch is split.

    Args:
        features: f, the embeddings of the rows, ``(n, d)``.
        partner: t, the embedding of each row's partner, ``(n, d)``.
        tau: The temperature :math:`\tau`, in units of the cosine, > 0.

    Returns:
        ``(n,)``, one value a row.

    Raises:
        ValueError: ``tau <= 0``, shapes that don't match.
        TypeError: features that are not floating-point.

    Papers: oord2018cpc, lei2025rrcm

    >>> infonce_loss(torch.eye(2), torch.eye(2), tau=0.1) < 1e-3
    tensor([True, True])
    """
    check_floating("features", features)
    check_floating("partner", partner)
    check_same_shape(features, partner, names=("features", "partner"))
    check_positive("tau", tau)
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}")
    dtype = torch.promote_types(torch.promote_types(features.dtype, partner.dtype), torch.float32)
    with torch.autocast(features.device.type, enabled=False):  # cosines in half precision are too coarse to divide
        cosines = directions(features.to(dtype)) @ directions(partner.to(dtype)).mT
    scores = cosines / tau
    return scores.logsumexp(dim=1) - scores.diagonal()
