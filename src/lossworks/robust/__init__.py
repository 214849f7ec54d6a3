"""Whole objectives against the worst case, where a method is more than one part in one role."""

from lossworks.robust.comp_sum import SmoothAdversarialCompSumLoss
from lossworks.robust.doubly import DoublyRobustAT

__all__ = ["DoublyRobustAT", "SmoothAdversarialCompSumLoss"]
