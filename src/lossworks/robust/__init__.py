"""Whole objectives against the worst case, where a method is more than one part in one role."""

from lossworks.robust.adawac import AdaWAC, adawac_update
from lossworks.robust.certified import CertifiedCrossEntropy
from lossworks.robust.comp_sum import SmoothAdversarialCompSumLoss
from lossworks.robust.denoised import DenoisedSmoothingLoss
from lossworks.robust.doubly import DoublyRobustAT
from lossworks.robust.noise_consistency import NoiseConsistency
from lossworks.robust.self_supervised import RSSLoss, ramp_loss
from lossworks.robust.srat import SRATLoss
from lossworks.robust.trajectory import EMATrajectoryLoss

__all__ = [
    "AdaWAC",
    "CertifiedCrossEntropy",
    "DenoisedSmoothingLoss",
    "DoublyRobustAT",
    "EMATrajectoryLoss",
    "NoiseConsistency",
    "RSSLoss",
    "SRATLoss",
    "SmoothAdversarialCompSumLoss",
    "adawac_update",
    "ramp_loss",
]
