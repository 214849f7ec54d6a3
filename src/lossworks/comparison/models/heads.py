"""What reads a network's outputs: the last piece of a trained module."""

import torch
from torch import Tensor, nn

from lossworks.comparison.models.scaling import TargetScale

__all__ = ["PositiveValues", "Rates", "Values"]

FLOOR = 0.01
"""The least expected count, as a share of the mean."""


class Values(nn.Module):
    """Real values in the target's own unit, of one standardised output or of logits over bins.

    Args:
        support: The standardised value that each bin stands for, ``(k,)``; not read where there is one output.
        mean: Of the target over the fit rows.
        std: Likewise.
    """

    support: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, support: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("support", support)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, support: Tensor, scale: TargetScale) -> "Values":
        """For a target of that scale."""
        return cls(support, *(torch.tensor(value, dtype=torch.float64) for value in (scale.mean, scale.std)))

    def forward(self, output: Tensor) -> Tensor:
        """``(n,)`` of ``(n, k)``."""
        standardised = output.softmax(dim=-1) @ self.support if len(self.support) > 1 else output.flatten()
        return (standardised.to(self.mean.dtype) * self.std + self.mean).to(output.dtype)


class PositiveValues(Values):
    """The same for a target that is never negative and has a mean > 0, of which a prediction is at least 1 %."""

    def forward(self, output: Tensor) -> Tensor:
        """``(n,)`` of ``(n, k)``, > 0."""
        return super().forward(output).clamp_min((FLOOR * self.mean).to(output.dtype))


class Rates(nn.Module):
    """Expected counts, of one output that is their logarithm in units of the mean count.

    Args:
        unit: The mean count over the fit rows.
    """

    unit: Tensor

    def __init__(self, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", unit)

    @classmethod
    def of(cls, scale: TargetScale) -> "Rates":
        """For a target in this unit."""
        return cls(torch.tensor(scale.std, dtype=torch.float64))

    def forward(self, output: Tensor) -> Tensor:
        """``(n,)`` of ``(n, 1)``, > 0."""
        return (output.flatten().to(self.unit.dtype).exp() * self.unit).to(output.dtype)
