"""The loss by the margin."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.objectives import ramp_loss


def draw(ax: Axes) -> str:
    """The loss by the margin."""
    margin = torch.linspace(-1.5, 2.5, 121)
    lines = {f"gamma={gamma}": ramp_loss(margin, gamma) for gamma in (0.5, 1.0, 3.0)}
    curves(ax, margin, lines, "margin", "loss")
    return "The loss by the margin: 1 for a mistake, and a slope beside it."
