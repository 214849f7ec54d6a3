"""The whole formula as one object."""

from lossworks.objective.micro_batches import Objective

__all__ = ["Objective"]
