"""How far the nearest error is: the radius to first order, the error over the attack's size, and its power law."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossworks.checks import (
    check_batch,
    check_choice,
    check_classes,
    check_floating,
    check_function,
    check_positive,
    check_sequence,
    taken,
)
from lossworks.diagnose.drawing import axes
from lossworks.objective.states import resting
from lossworks.perturb import FGSM
from lossworks.roles import Perturbation, cite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PowerLaw", "adversarial_error_curve", "fit_power_law", "linear_adversarial_radius"]

DUAL = {"linf": 1.0, "l2": 2.0}


class PowerLaw(NamedTuple):
    """A fitted law ``error = prefactor * eps ** exponent``, and its R² (explained variance) in log error."""

    exponent: float
    prefactor: float
    r2: float

    def plot(self, eps: Float[Tensor, " e"], error: Float[Tensor, " e"], ax: "Axes | None" = None) -> "Axes":
        """Draw the law beside the measured errors on logarithmic axes; errors of 0 cannot be shown there."""
        sizes, errors = (values.numpy() for values in _curve(eps, error))
        ax = axes(ax)
        ax.plot(sizes[errors > 0], errors[errors > 0], "o", label="measured")
        across = np.sort(sizes)
        law = f"{self.prefactor:.2g} · size^{self.exponent:.2f}, R² {self.r2:.3f}"
        ax.plot(across, self.prefactor * across**self.exponent, label=law)
        ax.set(xscale="log", yscale="log", xlabel="size of the attack", ylabel="share of rows in error")
        ax.legend()
        return ax


@cite("cubuk2017intriguing", helps=("attacks",))
def linear_adversarial_radius(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"] | None = None,
    *,
    norm: str = "linf",
) -> Float[Tensor, " n"]:
    r"""Linear adversarial radius: the smallest change that makes another class win, if the model were linear.

    .. math::
        \varepsilon^* = \min_{j \ne y} \frac{z_y - z_j}{\lVert \nabla_x (z_y - z_j) \rVert_q}, \qquad
        \tfrac1p + \tfrac1q = 1

    with :math:`y` the class that wins now, or the target. It is exact for a linear model, and for any model it is exact
    in the limit of small radii; it is no certificate. Where the density of :math:`\varepsilon^*` at 0 is neither 0 nor
    infinite, the error under a small attack grows in proportion to the attack's size. It costs one forward pass, and
    one backward pass per class.

    Args:
        model: A module that gives logits ``(n, C)``, each row's from that row alone. It runs in evaluation mode.
        x: The inputs ``(n, ...)``.
        target: The classes that should win; a row where another class wins has radius 0. By default the classes that
            win now.
        norm: The norm of the change, ``"linf"`` or ``"l2"``.

    Returns:
        One radius per row, in x's units, >= 0; infinite where no class can be reached, as the gaps do not depend on x.

    Raises:
        ValueError: a model that doesn't give ``(n, C)`` with two or more classes, a norm that isn't known.
        TypeError: x is not floating-point.

    Use it to compare models or rows cheaply. To know what an attack does, run the attack.

    Papers: cubuk2017intriguing

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> linear_adversarial_radius(model, torch.tensor([[3.0, 1.0]]))
    tensor([1.])
    """
    order = DUAL[check_choice("norm", norm, DUAL)]
    check_batch("x", x)
    with resting(model), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = _logits(model, leaf)
        wanted = logits.argmax(dim=1) if target is None else target
        check_classes(logits, wanted)
        gaps = logits.gather(1, wanted[:, None]) - logits
        radius = torch.full_like(gaps[:, 0], torch.inf).detach()
        for number, gap in enumerate(gaps.unbind(dim=1)):
            slope = torch.zeros_like(leaf)
            if gap.requires_grad:
                (slope,) = torch.autograd.grad(gap.sum(), leaf, retain_graph=True, materialize_grads=True)
            steepness = torch.linalg.vector_norm(slope.flatten(1), ord=order, dim=1)
            distance = torch.where(gap > 0, gap / steepness, 0).detach()
            radius = torch.where(wanted == number, radius, torch.minimum(radius, distance))
    return radius


@cite("cubuk2017intriguing", helps=("attacks",))
def adversarial_error_curve(
    model: nn.Module,
    x: Float[Tensor, "n *features"],
    target: Int[Tensor, " n"],
    eps: Sequence[float],
    attack: Callable[[float], Perturbation] = FGSM,
) -> Float[Tensor, " e"]:
    r"""Adversarial error curve: the share of rows that are wrong under attack, for each size of the attack.

    .. math::
        \mathrm{error}(\varepsilon) = \frac1n \sum_i [\arg\max_k f_k(x_i + \delta_i(\varepsilon)) \ne y_i]

    Args:
        model: A module that gives logits ``(n, C)``, each row's from that row alone. It runs in evaluation mode.
        x: The inputs ``(n, ...)``.
        target: The right classes, int64.
        eps: The attack's sizes, in x's units, >= 0.
        attack: A function from a size to the perturbation that increases the cross-entropy, e.g. ``FGSM`` or
            ``partial(PGD, steps=20, bounds=(0, 1))``.

    Returns:
        One error in [0, 1] per size, float64. If the attack is weak, the error may fall as the size grows.

    Raises:
        ValueError: no rows, an empty ``eps`` or one below 0, shapes that don't match, a class outside ``[0, C)``.
        TypeError: x is not floating-point, ``attack`` gives no perturbation.

    Papers: cubuk2017intriguing

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> adversarial_error_curve(model, torch.tensor([[3.0, 1.0]]), torch.tensor([0]), [0.0, 0.9, 1.1])
    tensor([0., 0., 1.], dtype=torch.float64)
    """
    check_batch("x", x)
    check_sequence("eps", eps)
    for size in eps:
        check_positive("eps", size, allow_zero=True)
    if not len(eps):
        raise ValueError("eps must hold at least one size, got none")
    check_function("attack", attack, "a size")
    errors = []
    with resting(model):
        with torch.no_grad():
            logits = _logits(model, x)
        check_classes(logits, target)
        if not len(x):
            raise ValueError("x must hold at least one row, got none")
        for size in eps:
            perturb = attack(size)
            if not isinstance(perturb, Perturbation):
                raise TypeError(f"attack must give a lossworks perturbation, it gave {type(perturb).__name__}")
            found = perturb(lambda changed: cross_entropy(model(changed), target, reduction="none"), x)
            with torch.no_grad():
                errors.append((model(found).argmax(dim=1) != target).double().mean())
    return torch.stack(errors)


@cite("cubuk2017intriguing", helps=("attacks",))
def fit_power_law(
    eps: Float[Tensor, " e"], error: Float[Tensor, " e"], window: tuple[float, float] | None = None
) -> PowerLaw:
    r"""Fit a power law to errors over the attack's size, by least squares of the logarithms.

    .. math::
        \log \mathrm{error}(\varepsilon) \approx \log a + b \log \varepsilon

    Args:
        eps: The attack's sizes, > 0.
        error: The error at each size, >= 0; sizes without an error have no logarithm and are left out.
        window: The smallest and the largest size to use, both included; all by default. Errors near 1 cannot grow
            further and so leave the power law: choose a window in which errors are smaller.

    Returns:
        The exponent b, the prefactor a, and the R² of the logarithms.

    Raises:
        ValueError: shapes that don't match, values out of range or not finite, a window that is no interval, or fewer
            than two different sizes left.
        TypeError: not floating-point.

    Papers: cubuk2017intriguing

    >>> law = fit_power_law(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.1, 0.2, 0.4]))
    >>> round(law.exponent, 4), round(law.prefactor, 4), round(law.r2, 4)
    (1.0, 0.1, 1.0)
    """
    sizes, errors = _curve(eps, error)
    kept = errors > 0
    if window is not None:
        low, high = _interval(window)
        kept &= (sizes >= low) & (sizes <= high)
    across, up = sizes[kept].log(), errors[kept].log()
    across_spread = _centred(across)
    if not float(across_spread.square().sum()) > 0:
        raise ValueError("eps must hold two or more different sizes with an error above 0 in the window")
    up_spread = _centred(up)
    exponent = float((across_spread * up_spread).sum() / across_spread.square().sum())
    left, total = ((up_spread - exponent * across_spread).square().sum(), up_spread.square().sum())
    prefactor = float((up.mean() - exponent * across.mean()).exp())
    return PowerLaw(exponent, prefactor, float(1 - left / total) if float(total) > 0 else 1.0)


def _curve(eps: Tensor, error: Tensor) -> tuple[Float[Tensor, " e"], Float[Tensor, " e"]]:
    """The attack's sizes and errors in float64, or an error where they are not valid."""
    for name, values in (("eps", eps), ("error", error)):
        check_floating(name, values)
        if values.ndim != 1:
            raise ValueError(f"{name} must have shape (e,), got {tuple(values.shape)}")
    if eps.shape != error.shape:
        raise ValueError(f"error must have the shape of eps, got {tuple(error.shape)} beside {tuple(eps.shape)}")
    sizes, errors = eps.detach().cpu().double(), error.detach().cpu().double()
    if not bool(((sizes > 0) & sizes.isfinite()).all()):
        raise ValueError("eps must be finite and > 0 everywhere")
    if not bool(((errors >= 0) & errors.isfinite()).all()):
        raise ValueError("error must be finite and >= 0 everywhere")
    return sizes, errors


def _centred(values: Float[Tensor, " e"]) -> Float[Tensor, " e"]:
    """The values less their mean; exactly zero where all are equal."""
    values = values - values[:1]
    return values - values.mean()


def _interval(window: tuple[float, float]) -> tuple[float, float]:
    check_sequence("window", window)
    if len(window) != 2:
        raise ValueError(f"window must be two sizes, got {len(window)}")
    low, high = (float(check_positive("window", bound, allow_zero=True)) for bound in window)
    if low > high:
        raise ValueError(f"window must begin below its end, got {low:g} and {high:g}")
    return low, high


def output_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output for the rows, or an error if the model cannot take them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    with taken("x must be what model takes"):
        output = model(x)
    check_floating("model's output", output)
    assert isinstance(output, Tensor)
    return output


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output, or an error unless it holds two or more logits per row."""
    logits = output_of(model, x)
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(f"model must give logits (n, C) with C >= 2, it gave {tuple(logits.shape)}")
    return logits
