"""w: how much each row counts."""

from lossworks.weights.class_balanced import ClassBalanced
from lossworks.weights.fixed import SampleWeights, Uniform

__all__ = ["ClassBalanced", "SampleWeights", "Uniform"]
