"""A short warm-up for interval training: initial weights and a price that keep bounds from growing with depth."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.certify.bounds import Region, Statistics, intervals
from lossworks.certify.graph import graph_of
from lossworks.checks import check_between, check_bool, check_choice, check_generator, check_positive
from lossworks.roles import cite

__all__ = ["IBPWarmupRegularizer", "ibp_init_"]

_LEAST = 1e-12


@cite("shi2021fast", helps=("attacks",))
@torch.no_grad()
def ibp_init_(model: nn.Module, *, skip_last: bool = True, generator: torch.Generator | None = None) -> nn.Module:
    r"""IBP initialisation: draw the weights so that the width of interval bounds stays the same from layer to layer.

    .. math::
        W \sim N(0, \sigma^2), \quad \sigma = \frac{\sqrt{2 \pi}}{n_{in}}
        \quad \Rightarrow \quad \tfrac{n_{in}}{2}\, E|W| = 1

    It is applied to each linear layer and convolution, with its fan-in :math:`n_{in}`, and sets biases to 0. Usual
    initialisations let the width grow by about :math:`\sqrt{n_{in}}` per layer. With ``skip_last`` the last layer keeps
    its weights. The weights of a layer that reads a residual sum should be halved by hand afterwards, as the widths of
    the two branches add up.

    Args:
        model: The network; it is changed in place and returned.
        skip_last: Whether the last layer is left unchanged.
        generator: Where the weights are drawn from; torch's own generator by default.

    Returns:
        The network.

    Shape:
        - Every weight keeps its shape.

    Raises:
        ValueError: the model has no Linear or convolution.
        TypeError: not a module.

    Use it only before interval training: for plain training these weights are too small.

    Papers: shi2021fast

    >>> ibp_init_(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)))[0].bias.tolist()
    [0.0, 0.0]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_bool("skip_last", skip_last)
    check_generator("generator", generator)
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    if not layers:
        raise ValueError(f"model must have a Linear or convolution to draw, got none in {type(model).__name__}")
    for layer in layers[: len(layers) - 1 if skip_last else None]:
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / layer.weight[0].numel(), generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


class IBPWarmupRegularizer:
    r"""IBP warm-up regularizer: a price on interval bounds that grow with depth, and on ReLUs mostly on or mostly off.

    .. math::
        \lambda \Big(1 - \frac{\varepsilon}{\varepsilon_{max}}\Big) \, \frac1m \sum_i \Big[
        \frac{(\tau - \bar d_0 / \bar d_i)^+}{\tau} + \frac{(\tau - \rho_i)^+ + (\tau - \rho'_i)^+}{\tau} \Big]

    :math:`\bar d_i` is the mean radius of the input of ReLU i, and :math:`\bar d_0` that of the model's input.
    :math:`\rho_i \in [0, 1]` compares the ReLUs that are surely on with those that are surely off: it is the ratio of
    the smaller to the larger absolute sum of their centres. :math:`\rho'_i` is the same ratio for the spread of their
    centres. A layer that does not have ReLUs of both kinds has no such terms.

    The means are over a batch, so a batch that is split into micro-batches or over ranks has a separate price for each
    part.

    Args:
        tol: :math:`\tau`, the tolerance, in (0, 1].
        lam: :math:`\lambda`, in loss units, >= 0.

    Shape:
        - x: ``(n, ...)``; returns ``()``.

    Raises:
        ValueError: ``tol`` outside (0, 1], ``lam < 0``, ``share`` outside [0, 1], or as
            :func:`~lossworks.certify.interval_bounds`.

    Use it in the first epochs of interval training while the radius still grows, together with batch normalisation and
    :func:`ibp_init_`: add it to the loss, with ``share`` from :class:`SmoothedEpsilonSchedule`.

    Papers: shi2021fast

    >>> model, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(3, 2)
    >>> IBPWarmupRegularizer()(model, x, 0.1, share=1.0).item()
    0.0
    """

    papers = ("shi2021fast",)
    helps = ("attacks",)

    def __init__(self, tol: float = 0.5, lam: float = 0.5) -> None:
        self.tol = check_between("tol", tol, 0, 1, open_low=True)
        self.lam = check_positive("lam", lam, allow_zero=True)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *features"],
        eps: float | Tensor,
        *,
        share: float = 0.0,
        box: Sequence[Tensor] | None = None,
        statistics: str = "running",
    ) -> Float[Tensor, ""]:
        """The price. ``share`` is the present radius over the full one; the rest is as in :func:`interval_bounds`."""
        check_between("share", share, 0, 1)
        check_choice("statistics", statistics, ("running", "clean"))
        region, graph = Region.of(x, eps, box=box), graph_of(model)
        found = intervals(graph, region, cast(Statistics, statistics))
        boxes = [found[step.inputs[0]] for step in graph if step.kind == "relu"]
        if not boxes:
            return x.new_zeros(())
        first = ((region.high - region.low) / 2).mean()
        terms = [self._tightness(first, *bounds) + self._balance(*bounds) for bounds in boxes]
        return self.lam * (1 - share) * torch.stack(terms).mean()

    def _short(self, ratio: Tensor) -> Tensor:
        return (self.tol - ratio).clamp(min=0) / self.tol

    def _tightness(self, first: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return self._short(first / ((high - low) / 2).mean().clamp(min=_LEAST))

    def _balance(self, low: Tensor, high: Tensor) -> Tensor:
        centre, on, off = (low + high) / 2, low > 0, high < 0
        both = on.any() & off.any()
        apart = (centre - centre.mean()).square()
        total = centre.new_zeros(())
        for of_on, of_off in (((centre * on).sum(), -(centre * off).sum()), ((apart * on).sum(), (apart * off).sum())):
            ratio = of_on.clamp(min=_LEAST) / of_off.clamp(min=_LEAST)
            total = total + self._short(torch.minimum(ratio, 1 / ratio))
        return torch.where(both, total, torch.zeros_like(total))
