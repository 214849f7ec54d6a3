"""The whole formula as one object."""

from lossworks.objective.formula import Objective

__all__ = ["Objective"]
