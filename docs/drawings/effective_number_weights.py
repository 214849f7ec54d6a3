"""The weight of a class by its size."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.weights import effective_number_weights


def draw(ax: Axes) -> str:
    """The weight of a class by its size."""
    counts = torch.logspace(0, 4, 60)
    lines = {f"beta={beta}": effective_number_weights(counts, beta) for beta in (0.9, 0.99, 0.9999)}
    curves(ax, counts, lines, "rows of the class", "weight")
    ax.set_xscale("log")
    ax.set_yscale("log")
    return "The weight of each of 60 classes by the number of its rows."
