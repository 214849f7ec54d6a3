"""What a weight costs."""

import torch
from matplotlib.axes import Axes
from pictures import curves
from torch import nn

from lossworks.penalties import WeightMagnitudePenalty


def draw(ax: Axes) -> str:
    """What a weight costs."""
    sizes, layer, lines = torch.linspace(-2, 2, 81), nn.Linear(1, 1, bias=False), {}
    for p in (1.0, 2.0, 4.0):
        found = []
        for size in sizes:
            layer.weight.data.fill_(size)
            found.append(WeightMagnitudePenalty(1.0, p)(layer).item())
        lines[f"p={p:g}"] = found
    curves(ax, sizes, lines, "weight", "penalty")
    return "What one weight costs, with a strength of 1."
