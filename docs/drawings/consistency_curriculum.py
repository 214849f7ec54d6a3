"""The number of levels over the course of training."""

from matplotlib.axes import Axes
from pictures import curves

from lossworks.certify import consistency_curriculum


def draw(ax: Axes) -> str:
    """The number of levels over the course of training."""
    steps = range(0, 1000, 5)
    scales = [consistency_curriculum(step, 1000).num_scales for step in steps]
    curves(ax, steps, {"": scales}, "step of 1,000", "levels of noise")
    return "The number of levels of noise over the course of training."
