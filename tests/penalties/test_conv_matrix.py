import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.penalties import (
    OrthogonalConvPenalty,
    conv_orthogonality_bounds,
    conv_transform_matrix,
    orthogonal_conv_exists,
)


def _layer(dim, outputs, inputs, k, stride=1):
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d)[dim - 1]
    padding = (k - 1) // 2
    return kind(inputs, outputs, k, stride, padding, padding_mode="circular", bias=False, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dim", "outputs", "inputs", "k", "stride"),
    [(2, 2, 3, 3, 1), (2, 3, 2, 5, 1), (2, 3, 2, 3, 2), (2, 1, 1, 1, 3), (1, 2, 3, 3, 1), (1, 4, 2, 5, 2)],
)
def test_the_matrix_is_what_torchs_layer_does_to_each_unit_vector(dim, outputs, inputs, k, stride):
    layer = _layer(dim, outputs, inputs, k, stride)
    shape = (inputs, *[4 * stride] * dim)
    units = torch.eye(inputs * (4 * stride) ** dim, dtype=torch.float64).unflatten(1, shape)
    with torch.no_grad():
        assert_close(conv_transform_matrix(layer.weight, 4, stride), layer(units).flatten(1).T)


def test_taps_may_differ_by_dimension_and_wrap_around_small_images(generator):
    kernel = torch.randn(2, 1, 3, 1, dtype=torch.float64, generator=generator)
    by_hand = kernel[:, 0].sum(dim=1)[:, :, None]
    assert_close(conv_transform_matrix(kernel, 1), by_hand[:, 0])


@pytest.mark.parametrize("dim", [1, 2])
def test_orthogonal_kernels_exist_where_a_random_one_has_full_rank(dim, generator):
    found = set()
    for outputs in (1, 2, 3, 4, 5, 9, 10):
        for inputs in (1, 2):
            for k in (1, 2, 3):
                for stride in (1, 2, 3):
                    kernel = torch.randn(outputs, inputs, *[k] * dim, dtype=torch.float64, generator=generator)
                    matrix = conv_transform_matrix(kernel, 3 if dim == 1 else 2, stride)
                    full = int(torch.linalg.matrix_rank(matrix)) == min(matrix.shape)
                    assert orthogonal_conv_exists(outputs, inputs, k, stride, dim=dim) is full
                    found.add(full)
    assert found == {True, False}


@pytest.mark.parametrize(
    ("outputs", "inputs", "k", "stride"),
    [(2, 3, 3, 1), (6, 3, 3, 1), (3, 3, 3, 1), (2, 2, 5, 2), (6, 1, 3, 2), (5, 1, 2, 2), (6, 1, 4, 2), (2, 1, 4, 3)],
)
@pytest.mark.parametrize("steps", [0, 150])
def test_bounds_hold_at_every_size_and_are_below_the_papers(outputs, inputs, k, stride, steps):
    layer = _layer(2, outputs, inputs, k, stride)
    step = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(steps):
        step.zero_grad()
        OrthogonalConvPenalty(1.0)(layer).backward()
        step.step()
    kernel = layer.weight.detach()
    low, high = conv_orthogonality_bounds(kernel, stride)
    for size in (1, 2, 5):
        values = torch.linalg.svdvals(conv_transform_matrix(kernel, size, stride))
        assert low <= values.min() + 1e-9
        assert values.max() <= high + 1e-9
    rows, columns = outputs * (2 * ((k - 1) // stride) + 1) ** 2, inputs * (2 * k - 1) ** 2
    alpha = rows if outputs < inputs * stride**2 else columns
    assert high <= (1 + (alpha * OrthogonalConvPenalty(1.0)(layer).detach()).sqrt()).sqrt()


@pytest.mark.parametrize(("k", "stride"), [(1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 3), (6, 2)])
@pytest.mark.parametrize("outputs", [1, 7])
def test_the_error_counts_the_shifts_at_which_rows_or_columns_overlap(k, stride, outputs, generator):
    """Count the overlaps in the matrix itself: of rows if it is wide, else of its columns in blocks of a stride."""
    kernel = torch.rand(outputs, 1, k, dtype=torch.float64, generator=generator) + 0.5
    size = 12
    matrix = conv_transform_matrix(kernel, size, stride)
    if outputs < stride:
        product = matrix @ matrix.T
        blocks = product.reshape(outputs, size, outputs, size).abs().sum(dim=(0, 2))
    else:
        columns = matrix.roll((k - 1) // 2, dims=1)  # the first output's window begins at column 0
        product = columns.T @ columns
        blocks = product.reshape(size, stride, size, stride).abs().sum(dim=(1, 3))
    overlaps = int((blocks[0] > 0).sum())
    distance = torch.linalg.matrix_norm(product - torch.eye(len(product), dtype=torch.float64)) ** 2 / size
    low, high = conv_orthogonality_bounds(kernel, stride)
    assert_close(high, (1 + (overlaps * distance).sqrt()).sqrt())
    assert low == 0 or bool(torch.linalg.svdvals(matrix).min() >= low)


def test_at_an_orthogonal_kernel_the_bounds_are_one_and_have_no_slope():
    kernel = torch.eye(3, dtype=torch.float64)[:, :, None].requires_grad_()
    low, high = conv_orthogonality_bounds(kernel)
    assert (low.item(), high.item()) == (1.0, 1.0)
    (slope,) = torch.autograd.grad(low + high, kernel)
    assert bool((slope == 0).all())


def test_bounds_are_tight_where_all_shifts_add_up():
    kernel = torch.zeros(1, 1, 1, dtype=torch.float64) + 1.1
    low, high = conv_orthogonality_bounds(kernel)
    assert_close(high.item(), 1.1)
    assert_close(low.item(), (1 - (1.1**2 - 1)) ** 0.5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"kernel must have shape \(M, C, k\)"):
        conv_transform_matrix(torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="stride must be >= 1"):
        orthogonal_conv_exists(1, 1, 3, 0)
    with pytest.raises(ValueError, match="size must be"):
        conv_transform_matrix(torch.ones(1, 1, 3), 0)
    with pytest.raises(TypeError, match="kernel must be floating-point"):
        conv_orthogonality_bounds(torch.ones(1, 1, 3, dtype=torch.int64))
