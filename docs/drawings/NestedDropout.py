"""How often each feature is kept."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.layers import NestedDropout


def draw(ax: Axes) -> str:
    """How often each feature is kept."""
    lines = {}
    for sigma in (5.0, 10.0, 20.0):
        generator = torch.Generator().manual_seed(0)
        layer = NestedDropout(40, sigma, per_row=True, generator=generator)
        lines[f"sigma={sigma:g}"] = layer(torch.ones(20_000, 40)).mean(dim=0)
    curves(ax, range(1, 41), lines, "feature", "share of draws that keep it")
    return "How often each of 40 features is kept, over 20,000 draws."
