"""The levels of noise."""

from matplotlib.axes import Axes
from pictures import curves

from lossworks.certify import karras_sigmas


def draw(ax: Axes) -> str:
    """The levels of noise."""
    lines = {f"rho={rho:g}": karras_sigmas(20, rho=rho) for rho in (3.0, 7.0, 20.0)}
    curves(ax, range(20), lines, "level", "standard deviation of the noise")
    ax.set_yscale("log")
    return "Twenty levels of noise, from the largest to the smallest."
