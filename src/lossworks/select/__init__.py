"""Selectors, which i in the formula: subsets of the rows, and how far their labels can be trusted.

Stands on ``weights``.
"""

from lossworks.select.alternating import AlternatingSelector
from lossworks.select.co_teaching import CoTeachingSelector, co_teaching_step
from lossworks.select.confidence_threshold import dynamic_confidence_threshold
from lossworks.select.linear_separation import LinearSeparationSelector
from lossworks.select.personal_loss import PersonalLossResampler, personal_loss_weights
from lossworks.select.pseudo_loss import pseudo_loss_weights
from lossworks.select.small_loss import SmallLossGMMSelector
from lossworks.select.wad import WADWeights

__all__ = [
    "AlternatingSelector",
    "CoTeachingSelector",
    "LinearSeparationSelector",
    "PersonalLossResampler",
    "SmallLossGMMSelector",
    "WADWeights",
    "co_teaching_step",
    "dynamic_confidence_threshold",
    "personal_loss_weights",
    "pseudo_loss_weights",
]
