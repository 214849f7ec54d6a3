"""The loss at the point that SAM goes up to."""

import torch
from matplotlib.axes import Axes
from pictures import curves
from torch import Tensor, nn
from torch.optim import SGD

from lossworks.optim import SAM


def draw(ax: Axes) -> str:
    """The loss at the point that SAM goes up to, over one weight."""
    places = torch.linspace(-1.5, 2, 281)
    lines = {"loss": _loss(places)}
    for rho in (0.05, 0.1):
        lines[f"loss where SAM takes the gradient, rho={rho}"] = torch.stack(
            [_ascended(place, rho) for place in places]
        )
    curves(ax, places, lines, "weight", "loss")
    ax.set_ylim(-0.1, 2.4)
    return "The loss of one weight, with a sharp minimum and a flat one, and the loss at the point that SAM goes up to."


def _loss(weight: Tensor) -> Tensor:
    sharp, flat = torch.exp(-(((weight + 0.7) / 0.12) ** 2)), torch.exp(-(((weight - 0.8) / 0.6) ** 2))
    return 1 + 0.2 * weight**2 - sharp - flat


def _ascended(place: Tensor, rho: float) -> Tensor:
    weight = nn.Parameter(place.clone())
    optimizer = SAM(SGD([weight], lr=1.0), rho=rho)
    _loss(weight).backward()
    optimizer.ascend()
    return _loss(weight.detach())
