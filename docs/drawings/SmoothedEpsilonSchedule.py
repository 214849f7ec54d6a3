"""The radius over the course of training."""

from matplotlib.axes import Axes
from pictures import curves

from lossworks.certify import SmoothedEpsilonSchedule


def draw(ax: Axes) -> str:
    """The radius over the course of training."""
    shares, schedule, found = [step / 100 for step in range(101)], SmoothedEpsilonSchedule(0.1), []
    for share in shares:
        schedule.set_progress(share)
        found.append(schedule.eps)
    curves(ax, shares, {"": found}, "share of the training that is done", "radius")
    return "The radius over the course of training, up to 0.1."
