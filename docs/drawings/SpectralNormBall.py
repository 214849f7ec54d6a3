"""What becomes of the norm."""

import torch
from matplotlib.axes import Axes
from pictures import curves

from lossworks.layers import SpectralNormBall


def draw(ax: Axes) -> str:
    """What becomes of the norm."""
    scales, lines = torch.linspace(0, 3, 61), {}
    for bound in (0.5, 1.0, 2.0):
        ball = SpectralNormBall(bound)
        lines[f"bound={bound}"] = [torch.linalg.matrix_norm(ball(scale * torch.eye(3)), 2).item() for scale in scales]
    curves(ax, scales, lines, "spectral norm before", "spectral norm after")
    return "The spectral norm of a matrix before and after."
