"""How the noise falls."""

from matplotlib.axes import Axes
from pictures import curves

from lossworks.optim import gradient_noise_std


def draw(ax: Axes) -> str:
    """How the noise falls."""
    steps = range(200)
    lines = {f"eta={eta}": [gradient_noise_std(step, eta) for step in steps] for eta in (0.01, 0.3, 1.0)}
    curves(ax, steps, lines, "step", "standard deviation")
    return "The standard deviation of the noise, step by step (gamma=0.55)."
