r""":math:`\delta`: perturbations, which change the input before the model sees it."""

from lossworks.perturb.noise import GaussianNoise
from lossworks.perturb.pgd import FGSM, PGD
from lossworks.perturb.style import AdvStyle, DSUStyle, adversarial_style_step, style_perturb
from lossworks.perturb.trades import TRADES, LargestMarginChange, cw_margin_loss
from lossworks.perturb.transport import PricedAscent, wasserstein_robust_surrogate
from lossworks.perturb.zeroth_order import ZerothOrderFunction, zeroth_order, zo_gradient

__all__ = [
    "FGSM",
    "PGD",
    "TRADES",
    "AdvStyle",
    "DSUStyle",
    "GaussianNoise",
    "LargestMarginChange",
    "PricedAscent",
    "ZerothOrderFunction",
    "adversarial_style_step",
    "cw_margin_loss",
    "style_perturb",
    "wasserstein_robust_surrogate",
    "zeroth_order",
    "zo_gradient",
]
