"""A convolution as a matrix: its entries, whether it can be orthogonal, and how far a kernel is from orthogonal."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_int
from lossworks.penalties.orthogonal import kernel_distance
from lossworks.roles import cite

__all__ = ["conv_orthogonality_bounds", "conv_transform_matrix", "orthogonal_conv_exists"]

LARGEST = 10**9
"""The largest number of entries that a matrix may have."""
WIDEST = 2**15
"""The largest stride that is accepted; no real convolution comes near it."""


@cite("achour2022orthogonal", helps=("attacks",))
def orthogonal_conv_exists(
    out_channels: int, in_channels: int, kernel_size: int, stride: int = 1, *, dim: int = 2
) -> bool:
    r"""Say whether an orthogonal convolution with these channels, kernel size and stride exists (circular padding).

    .. math::
        M \le C k^d \quad \text{where } M \le C S^d, \qquad S \le k \quad \text{where } M \ge C S^d

    In the first case the rows of the layer's matrix can be orthonormal, in the second its columns. With zero padding, a
    kernel of more than one tap is orthogonal at the border only in degenerate cases.

    Args:
        out_channels: M, the number of output channels, >= 1.
        in_channels: C, the number of input channels, >= 1.
        kernel_size: k, the number of taps per dimension, >= 1.
        stride: S, >= 1.
        dim: d, the number of the image's dimensions, 1 to 3.

    Returns:
        True or False, for images that are at least k wide.

    Raises:
        ValueError: a number below 1, or ``dim`` above 3.
        TypeError: a number that is no int.

    Papers: achour2022orthogonal

    >>> orthogonal_conv_exists(8, 3, 3), orthogonal_conv_exists(8, 3, 1, stride=2)
    (True, False)
    """
    for name, number in (
        ("out_channels", out_channels),
        ("in_channels", in_channels),
        ("kernel_size", kernel_size),
        ("stride", stride),
    ):
        check_int(name, number, low=1)
    check_int("dim", dim, low=1, high=3)
    if out_channels < in_channels * stride**dim:
        return out_channels <= in_channels * kernel_size**dim
    return stride <= kernel_size


@cite("achour2022orthogonal", helps=("attacks",))
def conv_transform_matrix(
    kernel: Float[Tensor, "outputs inputs *taps"], size: int, stride: int = 1
) -> Float[Tensor, "rows columns"]:
    r"""The matrix of a convolution with circular padding: one row per output number, one column per input number.

    .. math::
        T_{(m, p), (c, q)} = \sum_{t \,:\, S p + t - \lfloor (k - 1) / 2 \rfloor \,\equiv\, q} K_{m, c, t}

    Rows and columns are ordered by channel first and by place second, as in a flattened image, so ``T @ x.flatten()``
    is the flattened output of torch's circular convolution.

    Args:
        kernel: ``(M, C, k)`` or ``(M, C, k, k)``; the number of taps may differ by dimension.
        size: The width of the output in each dimension, >= 1; the input is S times as wide.
        stride: S, >= 1.

    Returns:
        The matrix, ``(M * size ** d, C * (S * size) ** d)``. It is large, so use it to look at small cases.

    Raises:
        ValueError: a kernel of another shape, numbers below 1, or a matrix of more than 1e9 entries.
        TypeError: a kernel that is not floating-point.

    Papers: achour2022orthogonal

    >>> conv_transform_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), size=3)
    tensor([[2., 3., 1.],
            [1., 2., 3.],
            [3., 1., 2.]])
    """
    _check_kernel(kernel)
    check_int("size", size, low=1)
    check_int("stride", stride, low=1)
    outputs, inputs, *taps = kernel.shape
    wide, dim = size * stride, len(taps)
    if (entries := outputs * size**dim * inputs * wide**dim) > LARGEST:
        raise ValueError(f"size must give a matrix of at most {LARGEST:.0e} entries, got {size} for {entries:.0e}")
    places = _grid([size] * dim, kernel.device) * stride
    shifts = _grid(taps, kernel.device) - torch.tensor([(k - 1) // 2 for k in taps], device=kernel.device)
    axes = wide ** torch.arange(dim - 1, -1, -1, device=kernel.device)
    columns = ((places[:, None] + shifts) % wide * axes).sum(dim=2)
    rows = torch.arange(size**dim, device=kernel.device)[:, None].expand_as(columns)
    taken = kernel.flatten(2).permute(2, 0, 1).expand(*columns.shape, outputs, inputs)
    blocks = kernel.new_zeros(size**dim, wide**dim, outputs, inputs).index_put((rows, columns), taken, accumulate=True)
    return blocks.permute(2, 0, 3, 1).reshape(outputs * size**dim, inputs * wide**dim)


@cite("achour2022orthogonal", helps=("attacks",))
def conv_orthogonality_bounds(
    kernel: Float[Tensor, "outputs inputs *taps"], stride: int = 1
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Bounds on the singular values of a convolution with circular padding that hold for images of every size.

    .. math::
        \sqrt{1 - e} \le \sigma \le \sqrt{1 + e}, \qquad e^2 = \alpha L, \qquad
        \alpha = \prod_d \Big(2 \Big\lfloor \frac{k_d - 1}{S} \Big\rfloor + 1\Big)

    with :math:`L` the kernel's term in :class:`OrthogonalConvPenalty`. :math:`\alpha` counts the shifts at which the
    matrix's rows overlap. Its columns, taken in blocks of S places that begin where an output's window does, overlap at
    as many. The bound holds because the Gram matrix less the identity is a sum of one block per shift, whose squared
    norms add up to :math:`L`. The paper's constants are larger, by the factor M for rows and by a factor of C or more
    for columns.

    Args:
        kernel: ``(M, C, k)`` or ``(M, C, k, k)``; the number of taps may differ by dimension.
        stride: S, >= 1.

    Returns:
        The lower and the upper bound, ``()`` each; the lower bound is 0 where nothing is proved. For a matrix of p by q
        they hold for its min(p, q) singular values.

    Raises:
        ValueError: a kernel of another shape, ``stride < 1``, or a stride above 32768.
        TypeError: a kernel that is not floating-point.

    Use it to check, without an image, whether training kept a layer close to an isometry. With zero padding the upper
    bound still holds, but the lower does not.

    Papers: achour2022orthogonal

    >>> low, high = conv_orthogonality_bounds(torch.eye(2)[:, :, None])
    >>> low, high
    (tensor(1.), tensor(1.))
    """
    _check_kernel(kernel)
    check_int("stride", stride, low=1, high=WIDEST)
    taps = kernel.shape[2:]
    overlaps = math.prod(2 * ((k - 1) // stride) + 1 for k in taps)
    distance = kernel_distance(kernel, (stride,) * len(taps))
    # At an orthogonal kernel the root has no slope; it is given the slope 0 of the distance itself.
    apart = distance > 0
    error = torch.where(apart, (overlaps * torch.where(apart, distance, 1.0)).sqrt(), 0.0)
    return (1 - error).clamp(min=0).sqrt(), (1 + error).sqrt()


def _check_kernel(kernel: Tensor) -> None:
    check_floating("kernel", kernel)
    if kernel.ndim not in (3, 4) or not kernel.numel():
        raise ValueError(f"kernel must have shape (M, C, k) or (M, C, k, k), got {tuple(kernel.shape)}")


def _grid(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Every place of a grid, ``(places, dimensions)``; the last dimension varies fastest."""
    return torch.stack(torch.meshgrid(*[torch.arange(n, device=device) for n in sizes], indexing="ij"), -1).flatten(
        0, -2
    )
