"""Weightings, w in the formula: how much each row counts."""

from lossworks.weights.chi_square_dro import ChiSquareDRO
from lossworks.weights.class_balanced import ClassBalanced, effective_number_weights
from lossworks.weights.cvar import CVaR
from lossworks.weights.fixed import SampleWeights, UniformWeights
from lossworks.weights.group_dro import GroupDRO
from lossworks.weights.kl_dro import KLDRO, CompositionalEMA, KLDRORisk, kl_dro_weights
from lossworks.weights.pm_dro import PMDROWeights
from lossworks.weights.small_loss import SmallLossWeights
from lossworks.weights.trajectory import effective_sample_size, trajectory_distance_weights
from lossworks.weights.trimmed import TrimmedWeights

__all__ = [
    "KLDRO",
    "CVaR",
    "ChiSquareDRO",
    "ClassBalanced",
    "CompositionalEMA",
    "GroupDRO",
    "KLDRORisk",
    "PMDROWeights",
    "SampleWeights",
    "SmallLossWeights",
    "TrimmedWeights",
    "UniformWeights",
    "effective_number_weights",
    "effective_sample_size",
    "kl_dro_weights",
    "trajectory_distance_weights",
]
