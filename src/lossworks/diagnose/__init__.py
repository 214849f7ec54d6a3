"""Looking inside: what a model, its data and its objective do to each other."""

from lossworks.diagnose.adversarial import (
    PowerLaw,
    adversarial_error_curve,
    fit_power_law,
    linear_adversarial_radius,
)
from lossworks.diagnose.mismatch import Correlation, ObjectiveMismatchReport, objective_mismatch

__all__ = [
    "Correlation",
    "ObjectiveMismatchReport",
    "PowerLaw",
    "adversarial_error_curve",
    "fit_power_law",
    "linear_adversarial_radius",
    "objective_mismatch",
]
