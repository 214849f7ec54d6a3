"""Looking inside: what a model, its data and its objective do to each other."""

from lossworks.diagnose.mismatch import Correlation, ObjectiveMismatchReport, objective_mismatch

__all__ = ["Correlation", "ObjectiveMismatchReport", "objective_mismatch"]
