"""Drawn derivatives."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.losses import sample_calibrated_derivatives


def draw(ax: Axes) -> str:
    """Drawn derivatives."""
    margins, lines = torch.linspace(-3, 3, 121), {}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        lines[f"draw {seed + 1}"] = sample_calibrated_derivatives(margins, generator=generator)
    curves(ax, margins, lines, "margin", "derivative")
    return "Three draws of the derivative at each margin: never above 0, rising, and below 0 at a margin of 0."
