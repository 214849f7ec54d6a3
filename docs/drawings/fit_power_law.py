"""A power law through errors."""

import torch
from matplotlib.axes import Axes
from pictures import COLOURS

from lossworks.diagnose import fit_power_law


def draw(ax: Axes) -> str:
    """A power law through errors."""
    eps = torch.logspace(-2, 0, 12)
    error = 0.4 * eps**0.9 * torch.exp(0.1 * torch.randn(12))
    law = fit_power_law(eps, error)
    ax.loglog(eps, error, "o", color=COLOURS[0], label="errors")
    ax.loglog(
        eps, law.prefactor * eps**law.exponent, color=COLOURS[1], label=f"{law.prefactor:.2f} eps^{law.exponent:.2f}"
    )
    ax.set_xlabel("size of the attack, eps")
    ax.set_ylabel("error")
    ax.legend()
    return "Made-up errors over the size of the attack, and the power law that goes best through them."
