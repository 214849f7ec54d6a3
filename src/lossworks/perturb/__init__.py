r""":math:`\delta`: what happens to the input before the model sees it."""

from lossworks.perturb.noise import GaussianNoise

__all__ = ["GaussianNoise"]
