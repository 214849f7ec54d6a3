"""Orthogonal convolutions: a penalty on the kernel alone makes the layer near isometric at every image size."""

import torch
from torch import nn

from claims.record import Measurement
from lossworks.penalties import OrthogonalConvPenalty

PAPER = "achour2022orthogonal"
RULE = (
    "Circular convolutions of 3x3 taps (3 to 6 channels with stride 1, 6 to 3 with stride 1, 3 to 6 with stride 2), "
    "3 seeds each, Adam (0.01, 800 steps) on the penalty alone: all singular values of the layer's matrix lie in "
    "[0.99, 1.01] on images of 8, 16 and 32 pixels a side."
)

SEEDS, STEPS = 3, 800
LAYERS = ((3, 6, 1), (6, 3, 1), (3, 6, 2))
SIDES = (8, 16, 32)


def measure() -> Measurement:
    low: dict[int, list[float]] = {side: [] for side in SIDES}
    high: dict[int, list[float]] = {side: [] for side in SIDES}
    for inputs, outputs, stride in LAYERS:
        for seed in range(SEEDS):
            layer = _trained(inputs, outputs, stride, seed)
            for side in SIDES:
                values = _singular_values(layer.weight.detach(), stride, side)
                low[side].append(float(values.min()))
                high[side].append(float(values.max()))
    return Measurement(
        shown=all(min(low[side]) >= 0.99 and max(high[side]) <= 1.01 for side in SIDES),
        measured="singular values in "
        + ", ".join(f"[{min(low[side]):.4f}, {max(high[side]):.4f}] at {side} pixels" for side in SIDES),
        numbers={
            **{f"least singular value at {side} (3 layers x 3 seeds)": low[side] for side in SIDES},
            **{f"largest singular value at {side} (3 layers x 3 seeds)": high[side] for side in SIDES},
        },
        seeds=SEEDS,
    )


def _trained(inputs: int, outputs: int, stride: int, seed: int) -> nn.Conv2d:
    """A convolution moved along the penalty's gradient alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Conv2d(inputs, outputs, 3, stride, 1, padding_mode="circular", bias=False, dtype=torch.float64)
    penalty = OrthogonalConvPenalty(1.0)
    step = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(STEPS):
        step.zero_grad()
        penalty(layer).backward()
        step.step()
    return layer


def _singular_values(kernel: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """Those of a circular convolution, a small matrix a frequency; strides fold frequencies onto each other."""
    spectrum = torch.fft.fft2(kernel, s=(side, side))
    outputs, inputs, small = kernel.shape[0], kernel.shape[1], side // stride
    folded = spectrum.reshape(outputs, inputs, stride, small, stride, small).permute(3, 5, 0, 1, 2, 4)
    return torch.linalg.svdvals(folded.reshape(small, small, outputs, inputs * stride**2) / stride)
