r""":math:`\delta`: what happens to the input before the model sees it."""

from lossworks.perturb.noise import GaussianNoise
from lossworks.perturb.pgd import FGSM, PGD
from lossworks.perturb.style import AdvStyle, DSUStyle, adversarial_style_step, style_perturb

__all__ = ["FGSM", "PGD", "AdvStyle", "DSUStyle", "GaussianNoise", "adversarial_style_step", "style_perturb"]
