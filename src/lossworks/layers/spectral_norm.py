"""Networks whose Lipschitz constant is bounded by the spectral norms of their layers."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lossworks.checks import check_floating, check_positive, readable, wide
from lossworks.roles import Part, cite

__all__ = ["SpectralNormBall", "project_lipschitz_"]

NEVER_STEEPER = (
    nn.Dropout,
    nn.Flatten,
    nn.Hardtanh,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)
"""Layers that never move two inputs further apart, in evaluation mode."""


class SpectralNormBall(Part):
    r"""Spectral norm bound: a parametrization that scales a matrix down only where its spectral norm is above a bound.

    .. math::
        W = V \min\Big(1, \frac{L}{\lVert V \rVert_2}\Big)

    No matrix of the ball is nearer to V in the spectral norm. A chain of linear layers with bounds :math:`L_k`, and
    activations of slope at most 1 between them, has a Lipschitz constant of at most :math:`\prod_k L_k`. The norm is
    computed exactly, from singular values, and so is its gradient; each forward pass costs one decomposition.

    Args:
        bound: L, the largest spectral norm, > 0.

    Shape:
        - weight: a matrix ``(outputs, inputs)``, floating-point; returns that shape.

    Raises:
        ValueError: ``bound <= 0``, a weight that is no matrix or not finite.
        TypeError: a weight that is not floating-point.

    Use it on linear layers that must not amplify a disturbance of their input, while they are trained. The kernel of a
    convolution is not the matrix that it applies; for convolutions use
    :class:`lossworks.penalties.OrthogonalConvPenalty`.

    Papers: makdah2021lipschitz

    >>> layer = nn.Linear(3, 2)
    >>> _ = parametrize.register_parametrization(layer, "weight", SpectralNormBall(0.1))
    >>> bool(torch.linalg.matrix_norm(layer.weight, ord=2) <= 0.1 + 1e-6)
    True
    """

    papers = ("makdah2021lipschitz",)
    helps = ("attacks",)
    settings = ({}, {"bound": 0.5})

    def __init__(self, bound: float | Tensor = 1.0) -> None:
        super().__init__()
        self.bound = check_positive("bound", bound)

    def forward(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """The weight, scaled into the ball."""
        check_floating("weight", weight)
        if weight.ndim != 2:
            raise ValueError(f"weight must be a matrix (outputs, inputs), got shape {tuple(weight.shape)}")
        if readable(weight) and not bool(weight.isfinite().all()):
            raise ValueError("weight must be finite everywhere")
        if not weight.numel():
            return weight
        exact = wide(weight)
        norm = torch.linalg.matrix_norm(exact, ord=2)
        outside = norm > self.bound
        scale = torch.where(outside, self.bound / torch.where(outside, norm, 1.0), 1.0)
        return weight * scale.to(weight.dtype)


@cite("makdah2021lipschitz", helps=("attacks",))
@torch.no_grad()
def project_lipschitz_(module: nn.Module, lipschitz: float) -> nn.Module:
    r"""Lipschitz projection: scale a chain's linear layers until the product of their spectral norms is at most L.

    .. math::
        W_k \leftarrow W_k \min\Big(1, \frac{L}{\prod_{j=1}^K \lVert W_j \rVert_2}\Big)^{1/K}

    Call it after every step of the optimizer. In evaluation mode the module is then L-Lipschitz: a change of its input,
    measured in l2, changes its output by at most L times as much.

    Args:
        module: An ``nn.Linear``, or an ``nn.Sequential`` of linear layers and activations of slope at most 1. It is
            changed in place.
        lipschitz: L, > 0.

    Returns:
        The module.

    Raises:
        ValueError: ``lipschitz <= 0``, a layer of another kind, a weight with a parametrization or not finite.
        TypeError: ``module`` is no module.

    Papers: makdah2021lipschitz

    >>> model = project_lipschitz_(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), 0.5)
    >>> norms = [torch.linalg.matrix_norm(model[k].weight, ord=2).item() for k in (0, 2)]
    >>> math.prod(norms) <= 0.5 + 1e-6
    True
    """
    check_positive("lipschitz", lipschitz)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a module, got {type(module).__name__}")
    layers = _linear_layers(module)
    if not all(bool(layer.weight.isfinite().all()) for layer in layers):
        raise ValueError("module must have finite weights")
    norms = [float(torch.linalg.matrix_norm(layer.weight.double(), ord=2)) for layer in layers if layer.weight.numel()]
    if not norms or not all(norms):
        return module
    excess = sum(map(math.log, norms)) - math.log(lipschitz)
    if excess > 0:
        for layer in layers:
            layer.weight.mul_(math.exp(-excess / len(layers)))
    return module


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The linear layers of a chain; raise an error that names any layer of another kind."""
    # Exact types are checked, as a subclass may do anything in its forward.
    if type(module) is nn.Sequential:
        return [layer for child in module for layer in _linear_layers(child)]
    if type(module) is nn.Linear:
        return [module]
    gentle = type(module) is nn.LeakyReLU and abs(module.negative_slope) <= 1
    if gentle or type(module) in NEVER_STEEPER:
        return []
    if parametrize.is_parametrized(module):
        raise ValueError(f"module must have plain weights, one of {module.extra_repr()} has a parametrization")
    raise ValueError(
        f"module must be a chain of linear layers and activations of slope at most 1, it has {type(module).__name__}"
    )
