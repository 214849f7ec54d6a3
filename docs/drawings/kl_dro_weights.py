"""The shares by the loss."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.weights import kl_dro_weights


def draw(ax: Axes) -> str:
    """The shares by the loss."""
    losses = torch.linspace(0, 3, 61)
    curves(ax, losses, {f"r={r}": kl_dro_weights(losses, r) for r in (0.5, 1.0, 2.0)}, "loss of the row", "share")
    return "The share of each of 61 rows by its loss; they sum to 1."
