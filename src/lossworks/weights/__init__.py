"""w: how much each row counts."""

from lossworks.weights.class_balanced import ClassBalanced
from lossworks.weights.fixed import SampleWeights, Uniform
from lossworks.weights.kl_dro import KLDRO

__all__ = ["KLDRO", "ClassBalanced", "SampleWeights", "Uniform"]
