"""Fused losses on a linear output layer: the same values and gradients without the matrix of logits."""

from lossworks.fused.divergence import linear_kl
from lossworks.fused.linear import linear_log_probs, linear_loss
from lossworks.fused.parallel import parallel_linear_loss
from lossworks.fused.spherical import FactoredSphericalHead

__all__ = ["FactoredSphericalHead", "linear_kl", "linear_log_probs", "linear_loss", "parallel_linear_loss"]
