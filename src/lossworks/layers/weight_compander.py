"""Weights behind a curve that bounds the large ones and drives the small ones apart."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lossworks.checks import check_bool, check_floating, check_positive
from lossworks.roles import Part, cite

__all__ = ["WeightCompander", "add_weight_compander"]

INVERTED = 0.99
"""The share of the bound up to which a weight is inverted as it is: the tangent is infinite at the bound."""
HEADROOM = 1.5
"""How far the bound lies above the largest weight where nothing is said."""


class WeightCompander(Part):
    r"""A parametrization of a weight: none is large, and with ``b < a`` the small ones are moved away from zero.

    .. math::
        w = \Psi(v) = a \arctan(v / b), \qquad |w| < a \pi / 2, \qquad
        \frac{\partial w}{\partial v} = \frac{a b}{b^2 + v^2}

    What is trained is :math:`v`; weight decay and penalties that read the parameters act on it. The slope is
    :math:`a / b` at zero and falls with :math:`v^2`, so a weight moves the less the larger it is. With :math:`a = b`
    it is the identity at small weights, and everywhere in the limit.

    Args:
        a: The bound over :math:`\pi / 2`, in units of the weight, > 0.
        b: Where the curve bends, in units of :math:`v`, > 0.
        learnable: Whether a and b are trained: each is multiplied by the exponential of an entry of ``log_factors``.
            Give that parameter a tenth of the learning rate or less, or training breaks down.

    Attributes:
        log_factors: ``(2,)``, a parameter, 0 at first; only with ``learnable``.

    Shape:
        - weight: any shape, floating-point; returns that shape.

    Raises:
        ValueError: ``a <= 0``, ``b <= 0``.
        TypeError: a weight that is not floating-point.

    Use it on the weights of linear layers and convolutions, not on biases and norms (:func:`add_weight_compander`),
    together with weight decay. Not where large weights are needed, as in a last layer whose scale sets the confidence.

    The curve is the arctangent; the paper's abstract asks only for a function that bounds and moves away from zero.

    Papers: cakaj2023compander

    >>> layer = nn.Linear(3, 2)
    >>> _ = parametrize.register_parametrization(layer, "weight", WeightCompander(a=0.5, b=0.4))
    >>> bool(layer.weight.abs().max() < 0.5 * math.pi / 2)
    True
    """

    papers = ("cakaj2023compander",)
    helps = ("overfitting",)
    settings = ({}, {"a": 0.5, "b": 0.3}, {"learnable": True})

    def __init__(self, a: float | Tensor = 1.0, b: float | Tensor = 1.0, learnable: bool = False) -> None:
        super().__init__()
        self.a = check_positive("a", a)
        self.b = check_positive("b", b)
        self.learnable = check_bool("learnable", learnable)
        if learnable:
            self.log_factors = nn.Parameter(torch.zeros(2))

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The weight of what is trained."""
        check_floating("weight", weight)
        a, b = self._curve()
        return a * torch.arctan(weight / b)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What gives this weight; one beyond 99% of the bound is first cut off there."""
        check_floating("weight", weight)
        a, b = self._curve()
        limit = INVERTED * math.pi / 2
        return b * torch.tan((weight / a).clamp(-limit, limit))

    def _curve(self) -> tuple[float | Tensor, float | Tensor]:
        if not self.learnable:
            return self.a, self.b
        factors = self.log_factors.exp()
        return self.a * factors[0], self.b * factors[1]


@cite("cakaj2023compander", helps=("overfitting",))
def add_weight_compander(
    module: nn.Module, a: float | None = None, b: float | None = None, *, learnable: bool = False
) -> list[WeightCompander]:
    r"""Put every linear layer's and convolution's weight behind a :class:`WeightCompander`; they keep their values.

    .. math:: a = \frac{2}{\pi} \cdot 1.5 \, \max |w|, \qquad b = a

    are what a layer gets where they are not given: a bound of 1.5 times its largest weight, and a slope of 1 at zero.

    Args:
        module: The model, or a layer; changed in place. Make the optimizer afterwards.
        a: As of :class:`WeightCompander`, for all layers. Weights beyond 99% of the bound are cut off there.
        b: As of :class:`WeightCompander`, for all layers; ``a`` unless given.
        learnable: Whether a and b are trained, in each layer its own.

    Returns:
        The companders, in the order of the layers, e.g. to give their parameters a smaller learning rate.

    Raises:
        ValueError: ``a`` or ``b`` out of range, a module without such a layer, a weight that is all 0 where ``a`` is
            not given, or one that has a parametrization.
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
