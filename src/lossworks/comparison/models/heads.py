"""Heads: the last module of a trained model, which reads the network's outputs."""

import torch
from torch import Tensor, nn

from lossworks.comparison.models.scaling import TargetScale

__all__ = ["PositiveValues", "Rates", "Values"]

FLOOR = 0.01
"""The smallest expected count, as a share of the mean count."""


class Values(nn.Module):
    """Head for real values: it turns one standardised output, or logits over bins, into values in the target's unit.

    Args:
        support: The standardised value of each bin, ``(k,)``; it is not used if there is one output.
        mean: The mean of the target over the training rows.
        std: The standard deviation of the target over the training rows.
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
        """Build the head for a target of this scale."""
        return cls(support, *(torch.tensor(value, dtype=torch.float64) for value in (scale.mean, scale.std)))

    def forward(self, output: Tensor) -> Tensor:
        """Turn outputs ``(n, k)`` into values ``(n,)``."""
        standardised = output.softmax(dim=-1) @ self.support if len(self.support) > 1 else output.flatten()
        return (standardised.to(self.mean.dtype) * self.std + self.mean).to(output.dtype)


class PositiveValues(Values):
    """Head for real values of a target that is never negative and has a mean > 0; it predicts at least 1 % of that."""

    def forward(self, output: Tensor) -> Tensor:
        """Turn outputs ``(n, k)`` into positive values ``(n,)``."""
        return super().forward(output).clamp_min((FLOOR * self.mean).to(output.dtype))


class Rates(nn.Module):
    """Head for counts: it turns one output, the logarithm of the count in units of the mean, into expected counts.

    Args:
        unit: The mean count over the training rows.
    """

    unit: Tensor

    def __init__(self, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", unit)

    @classmethod
    def of(cls, scale: TargetScale) -> "Rates":
        """Build the head for a target in this unit."""
        return cls(torch.tensor(scale.std, dtype=torch.float64))

    def forward(self, output: Tensor) -> Tensor:
        """Turn outputs ``(n, 1)`` into expected counts ``(n,)``, > 0."""
        return (output.flatten().to(self.unit.dtype).exp() * self.unit).to(output.dtype)
