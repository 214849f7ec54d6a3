"""Diagnostics: what a trained model, its data and its objective do to each other."""

from lossworks.diagnose.adversarial import (
    PowerLaw,
    adversarial_error_curve,
    fit_power_law,
    linear_adversarial_radius,
)
from lossworks.diagnose.closed_loop import Rollout, closed_loop_rollout
from lossworks.diagnose.influence import (
    InfluenceRelabeler,
    influence_matrix,
    influence_review_queue,
    self_influence,
)
from lossworks.diagnose.mismatch import Correlation, ObjectiveMismatchReport, objective_mismatch
from lossworks.diagnose.oracle import (
    FoundationModelRobustness,
    OracleAttack,
    foundation_model_robustness,
    oracle_constrained_attack,
)
from lossworks.diagnose.sharpness import sam_sharpness

__all__ = [
    "Correlation",
    "FoundationModelRobustness",
    "InfluenceRelabeler",
    "ObjectiveMismatchReport",
    "OracleAttack",
    "PowerLaw",
    "Rollout",
    "adversarial_error_curve",
    "closed_loop_rollout",
    "fit_power_law",
    "foundation_model_robustness",
    "influence_matrix",
    "influence_review_queue",
    "linear_adversarial_radius",
    "objective_mismatch",
    "oracle_constrained_attack",
    "sam_sharpness",
    "self_influence",
]
