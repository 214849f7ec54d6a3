"""Federated learning: objectives and aggregation rules for rows that stay with their clients."""

from lossworks.federated.decomposition import LossDecomposition, federated_loss_decomposition
from lossworks.federated.participation import ParticipationWeights, fedau_aggregate
from lossworks.federated.principal import principal_gradient_aggregate
from lossworks.federated.rounds import FederatedAdversarialTrainer, RoundInfo, federated_round

__all__ = [
    "FederatedAdversarialTrainer",
    "LossDecomposition",
    "ParticipationWeights",
    "RoundInfo",
    "fedau_aggregate",
    "federated_loss_decomposition",
    "federated_round",
    "principal_gradient_aggregate",
]
