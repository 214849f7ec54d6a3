"""Confidence before and after."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.calibrate import TemperatureScaling


def draw(ax: Axes) -> str:
    """Confidence before and after."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20_000, generator=generator) * 2
    target = (torch.rand(20_000, generator=generator) < truth.sigmoid()).long()
    logits = 2.5 * truth
    said = torch.linspace(-6, 6, 121)
    after = TemperatureScaling().fit(logits, target)(said).sigmoid()
    curves(ax, said, {"before": said.sigmoid(), "after": after}, "logit of class 1", "probability")
    return "The probability that a logit stands for, of a model whose logits are 2.5 times too large, before and after."
