"""A penalty that keeps convolutions close to orthogonal, so that they do not stretch their input."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d

from lossworks.checks import check_positive
from lossworks.distributed import replicated
from lossworks.roles import Penalty


class OrthogonalConvPenalty(Penalty):
    r"""Orthogonal convolutions: penalises how far layers are from maps that neither stretch nor flatten their input.

    .. math::
        R(\theta) = \lambda \sum_{\text{layers}} \lVert Z - I \rVert_F^2 - \max\big(0, M - C S\big), \qquad
        Z = \mathrm{conv}(K, K)

    :math:`K` is a kernel from :math:`C` to :math:`M` channels with stride :math:`S` (the product over dimensions),
    :math:`Z` holds its products with itself at all shifts by whole strides, and :math:`I` is the identity at shift
    zero. With circular padding, on inputs at least :math:`2k - 1` wide, a layer's term is exactly the squared Frobenius
    distance of its matrix :math:`T` to orthogonality, :math:`\lVert T T^\top - 1 \rVert_F^2` or, where outputs
    outnumber inputs, :math:`\lVert T^\top T - 1 \rVert_F^2`, divided by the number of places in its output. The cost
    does not depend on the image's size. With zero padding the identity holds away from the borders. ``nn.Linear``
    counts as a kernel of one tap, and each group of a grouped convolution counts as a kernel of its own. A weight that
    several layers share counts once for each way in which they use it (stride and groups).

    Args:
        strength: :math:`\lambda`, >= 0, in loss units; between 1e-5 and 1 is usual.

    Shape:
        - model: a module with ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Linear`` layers; returns ``()``.

    Raises:
        ValueError: ``strength < 0``, a model without such a layer, or a convolution with both stride and dilation.

    Use it where gradients vanish or explode in deep networks, or where small changes of the input should have small
    effects. Where :math:`M = C S` exactly, the orthogonal kernels lie in many separate pieces and are hard to reach.

    It differs from the published code of an earlier penalty, which takes the norm instead of its square, pads by one
    tap for every kernel unless told otherwise, and leaves out the constant. The identity above needs all three as they
    are here.

    Papers: achour2022orthogonal

    >>> OrthogonalConvPenalty(1.0)(nn.Linear(2, 1, bias=False)) >= 0
    tensor(True)
    """

    papers = ("achour2022orthogonal",)
    helps = ("attacks", "overfitting")
    settings = ({}, {"strength": 1e-4}, {"strength": 1.0})

    def __init__(self, strength: float | Tensor = 1e-2) -> None:
        super().__init__()
        self.strength = check_positive("strength", strength, allow_zero=True)

    def forward(self, model: nn.Module, *, features: Tensor | None = None) -> Float[Tensor, ""]:
        """The penalty of this model's layers."""
        layers = [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear))]
        if not layers:
            raise ValueError(f"model must have a convolution or a linear layer, {type(model).__name__} has none")
        # A weight that two layers share is one matrix, unless they move it by other strides or in other groups.
        distinct = {(id(layer.weight), _strides(layer), getattr(layer, "groups", 1)): layer for layer in layers}
        return self.strength * torch.stack([_distance(layer) for layer in distinct.values()]).sum()


def _strides(layer: nn.Conv1d | nn.Conv2d | nn.Linear) -> tuple[int, ...]:
    return (1,) if isinstance(layer, nn.Linear) else tuple(layer.stride)


def _distance(layer: nn.Conv1d | nn.Conv2d | nn.Linear) -> Tensor:
    """The squared distance of one layer from orthogonality, per place in its output."""
    weight = replicated(layer.weight)
    if isinstance(layer, nn.Linear):
        return kernel_distance(weight[:, :, None], (1,))
    if max(layer.stride) > 1 and max(layer.dilation) > 1:
        raise ValueError(f"model must not have a convolution with both stride and dilation, it has {layer}")
    kernels = weight.chunk(layer.groups)
    return torch.stack([kernel_distance(kernel, layer.stride) for kernel in kernels]).sum()


def kernel_distance(kernel: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The squared distance of one kernel from orthogonality, per place in its output."""
    outputs, inputs, *taps = kernel.shape
    padding = [(k - 1) // s * s for k, s in zip(taps, stride, strict=True)]
    products = (conv1d if len(taps) == 1 else conv2d)(kernel, kernel, stride=stride, padding=padding)
    centre = torch.zeros_like(products[0, 0])
    centre[tuple(p // s for p, s in zip(padding, stride, strict=True))] = 1
    identity = torch.eye(outputs, dtype=kernel.dtype, device=kernel.device)[(...,) + (None,) * len(taps)] * centre
    return (products - identity).square().sum() - max(0, outputs - inputs * math.prod(stride))
