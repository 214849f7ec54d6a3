r"""Losses on the model's outputs, :math:`\ell` in the formula: what a row costs, given its output and its target."""

from lossworks.losses.binary.ens import EnsLoss, OneVsRestEnsLoss, pair_derivatives, sample_calibrated_derivatives
from lossworks.losses.binary.margin import ExponentialLoss, HingeLoss, LogisticLoss, SquaredHingeLoss
from lossworks.losses.classes.active_passive import (
    ActivePassiveLoss,
    AsymmetricGeneralizedCrossEntropyLoss,
    AsymmetricUnhingedLoss,
    NormalizedCrossEntropyLoss,
    ReverseCrossEntropyLoss,
)
from lossworks.losses.classes.asymmetric import AsymmetricLoss, MultiLabelAsymmetricLoss
from lossworks.losses.classes.bi_tempered import BiTemperedLoss
from lossworks.losses.classes.brier import BrierLoss
from lossworks.losses.classes.comp_sum import CompSumLoss, comp_sum_h_consistency_bound
from lossworks.losses.classes.cross_entropy import CrossEntropyLoss
from lossworks.losses.classes.focal import FocalLoss
from lossworks.losses.classes.generalized_cross_entropy import (
    GeneralizedCrossEntropyLoss,
    TruncatedGeneralizedCrossEntropyLoss,
)
from lossworks.losses.classes.jensen_shannon import JensenShannonLoss
from lossworks.losses.classes.ldr import AdaptiveLDRLoss, LDRLoss, ldr_label_weights, normalize_scores
from lossworks.losses.classes.long_tail import BalancedSoftmaxLoss, LDAMLoss, LogitAdjustedLoss
from lossworks.losses.classes.margin_control import MarginControlLoss
from lossworks.losses.classes.mean_absolute_error import MeanAbsoluteErrorLoss
from lossworks.losses.classes.mixing import MixingLoss
from lossworks.losses.classes.multiclass_hinge import CrammerSingerLoss, WestonWatkinsLoss
from lossworks.losses.classes.poly import PolyLoss
from lossworks.losses.classes.prediction_entropy import PredictionEntropyLoss
from lossworks.losses.classes.pseudo_label_selection import (
    PseudoLabelSelectionLoss,
    pseudo_label_targets,
    uniform_prediction_loss,
)
from lossworks.losses.classes.smoothing_consistency import SmoothingConsistencyLoss
from lossworks.losses.classes.symmetric_cross_entropy import SymmetricCrossEntropyLoss
from lossworks.losses.classes.trajectory import TrajectoryLoss, trajectory_divergence
from lossworks.losses.classes.z import ZLoss, spherical_statistics, z_loss_from_statistics
from lossworks.losses.dense.boundary import (
    BoundaryAwarePseudoLabelLoss,
    ConfidenceWeightedCrossEntropyLoss,
    sobel_boundary_mask,
)
from lossworks.losses.pairs.bpr import BPRLoss
from lossworks.losses.real.general_robust import GeneralRobustLoss
from lossworks.losses.real.histogram import HLGaussLoss, TwoHotLoss
from lossworks.losses.real.poisson import PoissonLoss
from lossworks.losses.real.pseudo_huber import PseudoHuberLoss
from lossworks.losses.real.regression import (
    AbsoluteLoss,
    HuberLoss,
    LogCoshLoss,
    PinballLoss,
    SquaredLoss,
    TukeyBiweightLoss,
)

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
    "ConfidenceWeightedCrossEntropyLoss",
    "CrammerSingerLoss",
    "CrossEntropyLoss",
    "EnsLoss",
    "ExponentialLoss",
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
    "PoissonLoss",
    "PolyLoss",
    "PredictionEntropyLoss",
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
    "WestonWatkinsLoss",
    "ZLoss",
    "comp_sum_h_consistency_bound",
    "ldr_label_weights",
    "normalize_scores",
    "pair_derivatives",
    "pseudo_label_targets",
    "sample_calibrated_derivatives",
    "sobel_boundary_mask",
    "spherical_statistics",
    "trajectory_divergence",
    "uniform_prediction_loss",
    "z_loss_from_statistics",
]
