"""Certificates: proved bounds on a model's outputs that hold for every input in a ball, whatever the attack."""

from lossworks.certify.bounds import crown_bounds, interval_bounds, margin_spec, verified
from lossworks.certify.cross_entropy import (
    SmoothedEpsilonSchedule,
    certified_cross_entropy,
    fused_certified_cross_entropy,
)
from lossworks.certify.lipschitz import (
    LipschitzRegressor,
    empirical_lipschitz_constant,
    lipschitz_constraint_projection,
)
from lossworks.certify.mixed import (
    AdaptiveMixedClassifier,
    AdaptiveMixture,
    MixedClassifier,
    mix_probabilities,
    mixed_lipschitz_radius,
    mixed_smoothing_radius,
)
from lossworks.certify.representation import (
    EMAAndScales,
    RepresentationConsistencyLoss,
    RepresentationTerms,
    consistency_curriculum,
    karras_sigmas,
)
from lossworks.certify.smoothing import (
    Certificate,
    DualRandomizedSmoothing,
    RandomizedSmoothing,
    checkerboard_split,
    clopper_pearson_lower,
    dual_smoothing_radius,
)
from lossworks.certify.warmup import IBPWarmupRegularizer, ibp_init_

__all__ = [
    "AdaptiveMixedClassifier",
    "AdaptiveMixture",
    "Certificate",
    "DualRandomizedSmoothing",
    "EMAAndScales",
    "IBPWarmupRegularizer",
    "LipschitzRegressor",
    "MixedClassifier",
    "RandomizedSmoothing",
    "RepresentationConsistencyLoss",
    "RepresentationTerms",
    "SmoothedEpsilonSchedule",
    "certified_cross_entropy",
    "checkerboard_split",
    "clopper_pearson_lower",
    "consistency_curriculum",
    "crown_bounds",
    "dual_smoothing_radius",
    "empirical_lipschitz_constant",
    "fused_certified_cross_entropy",
    "ibp_init_",
    "interval_bounds",
    "karras_sigmas",
    "lipschitz_constraint_projection",
    "margin_spec",
    "mix_probabilities",
    "mixed_lipschitz_radius",
    "mixed_smoothing_radius",
    "verified",
]
