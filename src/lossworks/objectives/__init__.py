"""Objectives that run the model themselves, as their method is more than one part in one role."""

from lossworks.objectives.adawac import AdaWACObjective, adawac_update
from lossworks.objectives.certified import CertifiedCrossEntropyObjective
from lossworks.objectives.comp_sum import SmoothAdversarialCompSumObjective
from lossworks.objectives.denoised import DenoisedSmoothingObjective
from lossworks.objectives.doubly import DoublyRobustATObjective
from lossworks.objectives.noise_consistency import NoiseConsistencyObjective
from lossworks.objectives.self_supervised import RSSObjective, ramp_loss
from lossworks.objectives.srat import SRATObjective
from lossworks.objectives.trajectory import EMATrajectoryObjective

__all__ = [
    "AdaWACObjective",
    "CertifiedCrossEntropyObjective",
    "DenoisedSmoothingObjective",
    "DoublyRobustATObjective",
    "EMATrajectoryObjective",
    "NoiseConsistencyObjective",
    "RSSObjective",
    "SRATObjective",
    "SmoothAdversarialCompSumObjective",
    "adawac_update",
    "ramp_loss",
]
