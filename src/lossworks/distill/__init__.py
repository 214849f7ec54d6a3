r"""Distillation losses, :math:`\ell` between two models: what a student learns from a teacher.

Stands on ``losses``.
"""

from lossworks.distill.weight_aware import WeightAwareDistillationLoss

__all__ = ["WeightAwareDistillationLoss"]
