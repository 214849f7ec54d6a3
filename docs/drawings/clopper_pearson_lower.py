"""The bound by the share of successes."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.certify import clopper_pearson_lower


def draw(ax: Axes) -> str:
    """The bound by the share of successes."""
    share, lines = torch.linspace(0, 1, 101), {}
    for trials in (100, 1000, 10_000):
        lines[f"{trials:,} trials"] = clopper_pearson_lower((share * trials).round().long(), trials)
    curves(ax, share, lines, "share of successes", "lower bound")
    return "The lower bound by the share of successes, at a confidence of 0.999."
