"""How unsure a model of two classes is."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.optim import reliable_entropy_mask


def draw(ax: Axes) -> str:
    """How unsure a model of two classes is."""
    lead = torch.linspace(-5, 5, 121)
    sure, entropy = reliable_entropy_mask(torch.stack([lead, torch.zeros_like(lead)], dim=1))
    lines = {"entropy": entropy, "entropy of the rows that are kept": torch.where(sure, entropy, torch.nan)}
    curves(ax, lead, lines, "lead of one class's logit over the other", "entropy")
    return "How unsure a model of two classes is, and the rows that are kept."
