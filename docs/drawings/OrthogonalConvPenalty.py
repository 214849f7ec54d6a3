"""What a stretched convolution costs."""

import torch
from matplotlib.axes import Axes
from pictures import curves
from torch import nn

from lossworks.penalties import OrthogonalConvPenalty


def draw(ax: Axes) -> str:
    """What a stretched convolution costs."""
    layer, scales = nn.Conv2d(3, 3, 1, bias=False), torch.linspace(0, 1.6, 65)
    penalty, found = OrthogonalConvPenalty(1.0), []
    for scale in scales:
        layer.weight.data.copy_(scale * torch.eye(3)[:, :, None, None])
        found.append(penalty(layer).item())
    curves(ax, scales, {"": found}, "every singular value of the layer", "penalty")
    return (
        "What a convolution costs that stretches all its inputs alike, with a strength of 1: an isometry costs nothing."
    )
