"""The curve that weights go through."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.layers import WeightCompander


def draw(ax: Axes) -> str:
    """The curve that weights go through."""
    raw = torch.linspace(-4, 4, 121)
    lines = {f"a={a}, b={b}": WeightCompander(a, b)(raw).detach() for a, b in ((1.0, 1.0), (1.0, 0.3), (0.5, 1.0))}
    curves(ax, raw, lines, "what is trained, v", "the weight, w")
    return "The weight as a function of what is trained: none is above a pi / 2."
