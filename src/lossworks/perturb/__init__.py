r""":math:`\delta`: what happens to the input before the model sees it."""

from lossworks.perturb.noise import GaussianNoise
from lossworks.perturb.pgd import FGSM, PGD

__all__ = ["FGSM", "PGD", "GaussianNoise"]
