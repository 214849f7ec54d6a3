"""Weight companding: weights pass through a curve that bounds the large ones and drives the small ones from zero."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lossworks.checks import check_bool, check_floating, check_positive
from lossworks.roles import Part, cite

__all__ = ["WeightCompander", "add_weight_compander"]

INVERTED = 0.99
"""The share of the bound up to which a weight is inverted exactly: the tangent is infinite at the bound itself."""
HEADROOM = 1.5
"""How far the default bound lies above the largest weight."""


class WeightCompander(Part):
    r"""Weight compander: a parametrization that bounds large weights and, with ``b < a``, drives small ones from zero.

    .. math::
        w = \Psi(v) = a \arctan(v / b), \qquad |w| < a \pi / 2, \qquad
        \frac{\partial w}{\partial v} = \frac{a b}{b^2 + v^2}

    The trained parameter is :math:`v`; weight decay, and penalties that read the parameters, act on it. The slope of
    the curve is :math:`a / b` at zero and falls as :math:`v^2` grows, so larger weights move less. With :math:`a = b`
    the curve is close to the identity for small weights, and for all weights as :math:`a = b` grows.

    Args:
        a: The bound divided by :math:`\pi / 2`, in units of the weight, > 0.
        b: Where the curve bends, in units of :math:`v`, > 0.
        learnable: Whether a and b are trained: each is then multiplied by the exponential of an entry of
            ``log_factors``. Give that parameter a tenth of the learning rate or less, or training breaks down.

    Attributes:
        log_factors: ``(2,)``, a parameter, 0 at the start; it exists only with ``learnable``.

    Shape:
        - weight: any shape, floating-point; returns the same shape.

    Raises:
        ValueError: ``a <= 0``, ``b <= 0``.
        TypeError: a weight that is not floating-point.

    Use it on the weights of linear layers and convolutions, not on biases and norms (:func:`add_weight_compander` picks
    them), together with weight decay. Do not use it where large weights are needed, as in a last layer whose scale sets
    the confidence.

    The curve here is the arctangent. The paper's abstract asks only for a function that bounds weights and moves them
    away from zero.

    Papers: cakaj2023compander

    >>> layer = nn.Linear(3, 2)
    >>> _ = parametrize.register_parametrization(layer, "weight", WeightCompander(a=0.5, b=0.4))
    >>> bool(layer.weight.abs().max() < 0.5 * math.pi / 2)
    True
    """

    papers = ("cakaj2023compander",)
    helps = ("overfitting",)
    starts_as_identity = True
    settings = ({}, {"a": 0.5, "b": 0.3}, {"learnable": True})

    def __init__(self, a: float | Tensor = 1.0, b: float | Tensor = 1.0, learnable: bool = False) -> None:
        super().__init__()
        self.a = check_positive("a", a)
        self.b = check_positive("b", b)
        self.learnable = check_bool("learnable", learnable)
        if learnable:
            self.log_factors = nn.Parameter(torch.zeros(2))

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The weight, computed from the trained parameter."""
        check_floating("weight", weight)
        a, b = self._curve()
        return a * torch.arctan(weight / b)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The parameter that gives this weight; a weight beyond 99% of the bound is first cut off there."""
        check_floating("weight", weight)
        a, b = self._curve()
        limit = INVERTED * math.pi / 2
        return b * torch.tan((weight / a).clamp(-limit, limit))

    def _curve(self) -> tuple[float | Tensor, float | Tensor]:
        if not self.learnable:
            return self.a, self.b
        factors = self.log_factors.exp()
        return self.a * factors[0], self.b * factors[1]


@cite("cakaj2023compander", helps=("overfitting",), changes=("module",))
def add_weight_compander(
    module: nn.Module, a: float | None = None, b: float | None = None, *, learnable: bool = False
) -> list[WeightCompander]:
    r"""Add a :class:`WeightCompander` to the weight of every linear layer and convolution, keeping the weights' values.

    .. math:: a = \frac{2}{\pi} \cdot 1.5 \, \max |w|, \qquad b = a

    are the values that a layer gets by default: a bound of 1.5 times its largest weight, and a slope of 1 at zero.

    Args:
        module: The model, or a layer; it is changed in place. Make the optimizer afterwards.
        a: The ``a`` of :class:`WeightCompander` for all layers. Weights beyond 99% of the bound are cut off there.
        b: The ``b`` of :class:`WeightCompander` for all layers; the same as ``a`` by default.
        learnable: Whether a and b are trained, separately in each layer.

    Returns:
        The companders, in the order of the layers, e.g. to give their parameters a smaller learning rate.

    Raises:
        ValueError: ``a`` or ``b`` out of range, a module without such a layer, a weight that is all 0 where ``a`` is
            not given, or a weight that already has a parametrization.
        TypeError: ``module`` is no module.

    Papers: cakaj2023compander

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> before = model(torch.ones(1, 3))
    >>> len(add_weight_compander(model)), torch.allclose(model(torch.ones(1, 3)), before)
    (2, True)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a module, got {type(module).__name__}")
    for name, number in (("a", a), ("b", b)):
        if number is not None:
            check_positive(name, number)
    check_bool("learnable", learnable)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [layer for layer in module.modules() if isinstance(layer, kinds)]
    if not layers:
        raise ValueError(f"module must have a linear layer or a convolution, {type(module).__name__} has none")
    added = []
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"module must have plain weights, that of {layer.extra_repr()} has a parametrization")
        bound = HEADROOM * float(layer.weight.detach().abs().max()) * 2 / math.pi if a is None else a
        if not (0 < bound < math.inf):
            raise ValueError(f"module must have finite weights that are not all 0 unless a is given, got {bound:g}")
        compander = WeightCompander(bound, bound if b is None else b, learnable)
        parametrize.register_parametrization(layer, "weight", compander)
        added.append(compander)
    return added
