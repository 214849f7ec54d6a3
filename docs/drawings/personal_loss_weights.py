"""The weights of a user's items."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.select import personal_loss_weights


def draw(ax: Axes) -> str:
    """The weights of a user's items."""
    losses = torch.linspace(0, 1, 41)
    lines = {f"temperature={t}": personal_loss_weights(losses[None], t)[0] for t in (0.1, 0.3, 1.0)}
    curves(ax, losses, lines, "loss of the item", "weight")
    return "The weights of one user's 41 items by their losses; they sum to 1."
