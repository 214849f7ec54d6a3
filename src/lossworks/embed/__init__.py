r"""Losses on embeddings, :math:`\ell` in the formula: pull similar rows together and push the others apart."""

from lossworks.embed.feature_separation import FeatureSeparationLoss
from lossworks.embed.nt_xent import infonce_loss, nt_xent_loss

__all__ = ["FeatureSeparationLoss", "infonce_loss", "nt_xent_loss"]
