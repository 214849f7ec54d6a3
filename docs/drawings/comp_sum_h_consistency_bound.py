"""The bound by the gap."""

from matplotlib.axes import Axes
from pictures import curves

from lossworks.losses import comp_sum_h_consistency_bound


def draw(ax: Axes) -> str:
    """The bound by the gap."""
    gaps = [step / 50 for step in range(51)]
    lines = {f"tau={tau:g}": [comp_sum_h_consistency_bound(gap, tau, 10) for gap in gaps] for tau in (0.0, 1.0, 1.5)}
    curves(ax, gaps, lines, "how far the loss is from its best", "bound on the error")
    return "The bound on how far the error rate is from the best, with ten classes."
