r""":math:`\ell` on embeddings: what is alike together, what is not apart."""

from lossworks.embed.feature_separation import FeatureSeparationLoss
from lossworks.embed.nt_xent import infonce_loss, nt_xent_loss

__all__ = ["FeatureSeparationLoss", "infonce_loss", "nt_xent_loss"]
