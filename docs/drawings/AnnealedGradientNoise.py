"""What the noise does to a gradient of zero."""

import torch
from matplotlib.axes import Axes
from pictures import curves
from torch import nn
from torch.optim import SGD

from lossworks.optim import AnnealedGradientNoise


def draw(ax: Axes) -> str:
    """What the noise does to a gradient of zero."""
    lines = {}
    for setting in ({}, {"eta": 0.01}):
        weights, found = nn.Parameter(torch.zeros(400)), []
        optimizer = AnnealedGradientNoise(SGD([weights], lr=1.0), **setting)
        for _ in range(100):
            before = weights.detach().clone()
            weights.grad = torch.zeros_like(weights)
            optimizer.step()
            found.append((weights.detach() - before).std())
        lines[f"eta={setting.get('eta', 0.3)}"] = found
    curves(ax, range(100), lines, "step", "spread of a step")
    return "How far 400 weights whose gradient is 0 move apart in each step, at a learning rate of 1."
