"""Which losses are taken for noisy."""

import torch
from matplotlib.axes import Axes
from pictures import COLOURS

from lossworks.select import SmallLossGMMSelector


def draw(ax: Axes) -> str:
    """Which losses are taken for noisy."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.3 + 0.15 * torch.randn(400, generator=generator).abs()
    wrong = 2.0 + 0.5 * torch.randn(100, generator=generator)
    losses = torch.cat([clean, wrong])
    noisy = SmallLossGMMSelector()(losses)
    bins = torch.linspace(0, 3.5, 36).numpy()
    ax.hist([losses[~noisy], losses[noisy]], bins, stacked=True, color=COLOURS[:2], label=["kept", "taken for noisy"])
    ax.set_xlabel("loss of the row")
    ax.set_ylabel("rows")
    ax.legend()
    return "Losses of 400 rows with the right label and 100 with a wrong one, and which of them are taken for noisy."
