"""The bounds around a small network."""

import torch
from matplotlib.axes import Axes
from pictures import COLOURS, curves
from torch import nn

from lossworks.certify import interval_bounds


def draw(ax: Axes) -> str:
    """The bounds around a small network."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.5)
    x = torch.linspace(-2, 2, 161)[:, None]
    for number, eps in enumerate((0.05, 0.2)):
        low, high = (side.detach()[:, 0] for side in interval_bounds(model, x, eps))
        ax.fill_between(x[:, 0], low, high, color=COLOURS[1 - number], alpha=0.3, linewidth=0, label=f"eps={eps}")
    curves(ax, x[:, 0], {"output": model(x).detach()[:, 0]}, "input", "output")
    ax.legend()
    return (
        "The output of a small network of one input, and the intervals that hold it wherever the input is in the ball."
    )
