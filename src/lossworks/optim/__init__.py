"""Wrappers around any torch optimizer: sharpness-aware steps, noise on the gradient, prices on the output's change."""

from lossworks.optim.gradient_noise import AnnealedGradientNoise, gradient_noise_std
from lossworks.optim.ignite import IGNITE
from lossworks.optim.reliable import RSGS, reliable_entropy_mask
from lossworks.optim.sharpness import GSAM, SAM

__all__ = ["GSAM", "IGNITE", "RSGS", "SAM", "AnnealedGradientNoise", "gradient_noise_std", "reliable_entropy_mask"]
