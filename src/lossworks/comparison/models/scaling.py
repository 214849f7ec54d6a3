"""Scaling of inputs and real targets to order one: fitted on the training rows of a fold, applied to gathered rows."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Scaler", "Scaling", "TargetScale", "scale_"]

Scaling = Literal["robust", "standard"]

SAMPLED_ROWS = 100_000
SAMPLED_VALUES = 16_000_000
NORMAL_QUARTILES = 1.349  # the distance between the quartiles of N(0, 1)
CLIP = 3.0
LARGEST = 1e9  # its square is finite in float32


def scale_(x: Tensor, center: Tensor, inverse: Tensor, scaling: Scaling) -> Tensor:
    """Scale ``x`` in place: a missing value becomes 0, and robust scaling squeezes outliers smoothly into (-3, 3)."""
    x.sub_(center).mul_(inverse).nan_to_num_(nan=0.0)
    if scaling == "standard":
        return x
    x.clamp_(-LARGEST, LARGEST)
    return x.mul_((x / CLIP).square_().add_(1).rsqrt_())


class Scaler(nn.Module):
    r"""Standardises inputs by statistics of the rows that it was fitted on.

    ``"robust"`` scaling, for tables, is :math:`z = (x - \mathrm{median}) / (\mathrm{IQR} / 1.349)` followed by
    :math:`z / \sqrt{1 + (z / 3)^2}`. ``"standard"`` scaling, for arrays, is
    :math:`z = (x - \mathrm{mean}) / \mathrm{std}`, for images per channel. NaN becomes 0.

    Args:
        center: The center, which is subtracted; it is broadcast against one row.
        inverse: The factor by which the difference is multiplied; it is broadcast against one row.
        scaling: ``"robust"`` or ``"standard"``.
    """

    center: Tensor
    inverse: Tensor

    def __init__(self, center: Tensor, inverse: Tensor, scaling: Scaling) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("inverse", inverse)
        self.scaling: Scaling = scaling

    @classmethod
    def fit(cls, x: Tensor, rows: Tensor, scaling: Scaling) -> "Scaler":
        """Fit a scaler on at most 100,000 of ``rows``, which are drawn by a fixed seed."""
        limit = max(1000, min(SAMPLED_ROWS, SAMPLED_VALUES // max(x[0].numel(), 1)))
        if len(rows) > limit:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:limit].to(rows.device)]
        sample = x.index_select(0, rows.to(x.device))
        images = x.ndim > 2
        values = sample.movedim(1, -1).reshape(-1, x.shape[1]) if images else sample
        center, spread = _moments(values)
        if scaling == "robust" and not images:
            low, center, high = _quartiles(values)
            robust = (high - low) / NORMAL_QUARTILES
            spread = torch.where(robust > 0, robust, spread)
        inverse = torch.where(spread > 0, 1 / spread, 1.0).nan_to_num(nan=1.0, posinf=1.0)
        shape = (-1,) + (1,) * (x.ndim - 2)
        return cls(center.nan_to_num(nan=0.0).reshape(shape), inverse.reshape(shape), "standard" if images else scaling)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the rows."""
        return scale_(x.clone(), self.center, self.inverse, self.scaling)

    def extra_repr(self) -> str:
        """The kind of scaling and the number of columns or channels, for ``repr``."""
        return f"{self.scaling}, {self.center.numel()}"


@dataclass(frozen=True)
class TargetScale:
    """The scale of a real target: its mean and deviation over the training rows; losses see ``(y - mean) / std``."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fit(cls, y: Tensor, rows: Tensor) -> "TargetScale":
        """Fit the scale on all of ``rows``; the standard deviation of a constant target is set to 1."""
        values = y[rows].double()
        std = float(values.std(correction=0)) if len(values) else 0.0
        return cls(float(values.mean()) if len(values) else 0.0, std if std > 0 else 1.0)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    mean = values.nanmean(dim=0)
    return mean, (values - mean).square_().nanmean(dim=0).sqrt()


def _quartiles(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lower quartile, median and upper quartile of each column, without missing values."""
    ordered = values.sort(dim=0).values  # NaN comes last
    last = (~values.isnan()).sum(dim=0).sub_(1).clamp_(min=0)
    low, middle, high = (ordered.gather(0, (last * fraction).round().long()[None])[0] for fraction in (0.25, 0.5, 0.75))
    return low, middle, high
