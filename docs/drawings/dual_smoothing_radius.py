"""The radius by the two halves."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.certify import dual_smoothing_radius


def draw(ax: Axes) -> str:
    """The radius by the two halves."""
    p = torch.linspace(0.5, 0.999, 120)
    lines = {f"p_right={right}": dual_smoothing_radius(p, torch.full_like(p, right), 0.5) for right in (0.5, 0.8, 0.99)}
    curves(ax, p, lines, "p_left", "certified radius")
    return "The certified radius by how sure the left half is, for three answers of the right one (sigma=0.5)."
