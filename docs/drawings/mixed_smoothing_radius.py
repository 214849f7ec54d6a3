"""The radius by the share."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.certify import mixed_smoothing_radius


def draw(ax: Axes) -> str:
    """The radius by the share."""
    p = torch.linspace(0.5, 0.999, 120, dtype=torch.float64)
    lines = {f"alpha={alpha}": mixed_smoothing_radius(p, None, alpha, 0.5) for alpha in (0.6, 0.8, 1.0)}
    curves(ax, p, lines, "probability of the smoothed model's answer", "certified radius")
    return "The certified radius by how sure the smoothed model is, for three shares of it in the mixture (sigma=0.5)."
