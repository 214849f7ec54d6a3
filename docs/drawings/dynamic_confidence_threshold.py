"""The threshold by the mean confidence."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.select import dynamic_confidence_threshold


def draw(ax: Axes) -> str:
    """The threshold by the mean confidence."""
    means, lines = torch.linspace(0, 1, 101), {}
    for beta in (0.2, 0.5, 1.0):
        lines[f"beta={beta}"] = [
            dynamic_confidence_threshold(torch.full((4,), mean.item()), beta=beta) for mean in means
        ]
    curves(ax, means, lines, "mean confidence of the teacher", "threshold")
    return "The threshold by the teacher's mean confidence."
