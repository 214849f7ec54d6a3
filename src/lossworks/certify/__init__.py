"""What no attack can do: bounds on a model's outputs over all inputs in a ball."""

from lossworks.certify.bounds import crown_bounds, interval_bounds, margin_spec, verified
from lossworks.certify.cross_entropy import (
    SmoothedEpsilonSchedule,
    certified_cross_entropy,
    fused_certified_cross_entropy,
)
from lossworks.certify.warmup import IBPWarmupRegularizer, ibp_init_

__all__ = [
    "IBPWarmupRegularizer",
    "SmoothedEpsilonSchedule",
    "certified_cross_entropy",
    "crown_bounds",
    "fused_certified_cross_entropy",
    "ibp_init_",
    "interval_bounds",
    "margin_spec",
    "verified",
]
