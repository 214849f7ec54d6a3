"""Layers and weight parametrisations: parts of the model that a method needs."""

from lossworks.layers.multi_sample_dropout import MultiSampleDropout, multi_sample_dropout_loss
from lossworks.layers.nested_dropout import NestedDropout, best_prefix_length, prefix_accuracies
from lossworks.layers.prototypes import PrototypeClassifier, calibrate_prototypes
from lossworks.layers.spectral_norm import SpectralNormBall, project_lipschitz_
from lossworks.layers.weight_compander import WeightCompander, add_weight_compander

__all__ = [
    "MultiSampleDropout",
    "NestedDropout",
    "PrototypeClassifier",
    "SpectralNormBall",
    "WeightCompander",
    "add_weight_compander",
    "best_prefix_length",
    "calibrate_prototypes",
    "multi_sample_dropout_loss",
    "prefix_accuracies",
    "project_lipschitz_",
]
