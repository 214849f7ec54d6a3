r""":math:`\ell`: what a row costs, given the model's output and the target."""

from lossworks.losses.active_passive import (
    ActivePassiveLoss,
    AsymmetricGeneralizedCrossEntropyLoss,
    AsymmetricUnhingedLoss,
    NormalizedCrossEntropyLoss,
    ReverseCrossEntropyLoss,
)
from lossworks.losses.asymmetric import AsymmetricLoss, MultiLabelAsymmetricLoss
from lossworks.losses.bi_tempered import BiTemperedLoss
from lossworks.losses.binary import ExponentialLoss, HingeLoss, LogisticLoss, SquaredHingeLoss
from lossworks.losses.boundary import BoundaryAwarePseudoLabelLoss, ConfidenceWeightedCE, sobel_boundary_mask
from lossworks.losses.bpr import BPRLoss
from lossworks.losses.brier import BrierLoss
from lossworks.losses.comp_sum import CompSumLoss, comp_sum_h_consistency_bound
from lossworks.losses.cross_entropy import CrossEntropyLoss
from lossworks.losses.ens import EnsLoss, OneVsRestEnsLoss, pair_derivatives, sample_calibrated_derivatives
from lossworks.losses.feature_separation import FeatureSeparationLoss
from lossworks.losses.focal import FocalLoss
from lossworks.losses.general_robust import GeneralRobustLoss
from lossworks.losses.generalized_cross_entropy import GeneralizedCrossEntropyLoss, TruncatedGeneralizedCrossEntropyLoss
from lossworks.losses.histogram import HLGaussLoss, TwoHotLoss
from lossworks.losses.jensen_shannon import JensenShannonLoss
from lossworks.losses.ldr import AdaptiveLDRLoss, LDRLoss, ldr_label_weights, normalize_scores
from lossworks.losses.long_tail import BalancedSoftmaxLoss, LDAMLoss, LogitAdjustedLoss
from lossworks.losses.margin_control import MarginControlLoss
from lossworks.losses.mean_absolute_error import MeanAbsoluteErrorLoss
from lossworks.losses.mixing import MixingLoss
from lossworks.losses.multiclass_hinge import CrammerSingerLoss, WestonWatkinsLoss
from lossworks.losses.nt_xent import infonce_loss, nt_xent_loss
from lossworks.losses.poly import PolyLoss
from lossworks.losses.prediction_entropy import PredictionEntropyPenalty
from lossworks.losses.pseudo_huber import PseudoHuberLoss
from lossworks.losses.pseudo_label_selection import (
    PseudoLabelSelectionLoss,
    pseudo_label_targets,
    uniform_prediction_penalty,
)
from lossworks.losses.real import AbsoluteLoss, HuberLoss, LogCoshLoss, PinballLoss, SquaredLoss, TukeyBiweightLoss
from lossworks.losses.smoothing_consistency import SmoothingConsistencyLoss
from lossworks.losses.symmetric_cross_entropy import SymmetricCrossEntropyLoss
from lossworks.losses.trajectory import TrajectoryLoss, trajectory_divergence
from lossworks.losses.weight_aware_distillation import WeightAwareDistillationLoss
from lossworks.losses.z import ZLoss, spherical_statistics, z_loss_from_statistics

__all__ = [
    "AbsoluteLoss",
    "ActivePassiveLoss",
    "AdaptiveLDRLoss",
    "AsymmetricGeneralizedCrossEntropyLoss",
    "AsymmetricLoss",
    "AsymmetricUnhingedLoss",
    "BPRLoss",
    "BalancedSoftmaxLoss",
    "BiTemperedLoss",
    "BoundaryAwarePseudoLabelLoss",
    "BrierLoss",
    "CompSumLoss",
    "ConfidenceWeightedCE",
    "CrammerSingerLoss",
    "CrossEntropyLoss",
    "EnsLoss",
    "ExponentialLoss",
    "FeatureSeparationLoss",
    "FocalLoss",
    "GeneralRobustLoss",
    "GeneralizedCrossEntropyLoss",
    "HLGaussLoss",
    "HingeLoss",
    "HuberLoss",
    "JensenShannonLoss",
    "LDAMLoss",
    "LDRLoss",
    "LogCoshLoss",
    "LogisticLoss",
    "LogitAdjustedLoss",
    "MarginControlLoss",
    "MeanAbsoluteErrorLoss",
    "MixingLoss",
    "MultiLabelAsymmetricLoss",
    "NormalizedCrossEntropyLoss",
    "OneVsRestEnsLoss",
    "PinballLoss",
    "PolyLoss",
    "PredictionEntropyPenalty",
    "PseudoHuberLoss",
    "PseudoLabelSelectionLoss",
    "ReverseCrossEntropyLoss",
    "SmoothingConsistencyLoss",
    "SquaredHingeLoss",
    "SquaredLoss",
    "SymmetricCrossEntropyLoss",
    "TrajectoryLoss",
    "TruncatedGeneralizedCrossEntropyLoss",
    "TukeyBiweightLoss",
    "TwoHotLoss",
    "WeightAwareDistillationLoss",
    "WestonWatkinsLoss",
    "ZLoss",
    "comp_sum_h_consistency_bound",
    "infonce_loss",
    "ldr_label_weights",
    "normalize_scores",
    "nt_xent_loss",
    "pair_derivatives",
    "pseudo_label_targets",
    "sample_calibrated_derivatives",
    "sobel_boundary_mask",
    "spherical_statistics",
    "trajectory_divergence",
    "uniform_prediction_penalty",
    "z_loss_from_statistics",
]
