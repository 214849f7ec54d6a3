import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.penalties import OrthogonalConvPenalty, conv_transform_matrix


def _distance(matrix):
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return (gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum()


def _circular(kind, inputs, outputs, k, stride=1, groups=1):
    torch.manual_seed(0)
    padding = (k - 1) // 2
    return kind(
        inputs, outputs, k, stride=stride, padding=padding, padding_mode="circular", bias=False, groups=groups
    ).double()


@pytest.mark.parametrize(
    ("inputs", "outputs", "k", "stride"),
    [(3, 2, 3, 1), (2, 5, 3, 1), (3, 3, 3, 1), (2, 3, 3, 2), (1, 6, 3, 2), (1, 2, 5, 1), (2, 2, 5, 2)],
)
def test_is_the_squared_distance_of_the_whole_layer_per_place(inputs, outputs, k, stride):
    layer = _circular(nn.Conv2d, inputs, outputs, k, stride)
    side = 5 * stride * (2 if k == 5 else 1)
    matrix = conv_transform_matrix(layer.weight.detach(), side // stride, stride)
    assert_close(OrthogonalConvPenalty(1.0)(layer) * (side // stride) ** 2, _distance(matrix), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("outputs", "stride"), [(2, 1), (4, 1), (5, 2)])
def test_holds_in_one_dimension_too(outputs, stride):
    layer = _circular(nn.Conv1d, 3, outputs, 3, stride)
    found = OrthogonalConvPenalty(1.0)(layer) * (10 // stride)
    matrix = conv_transform_matrix(layer.weight.detach(), 10 // stride, stride)
    assert_close(found, _distance(matrix), rtol=1e-10, atol=1e-10)


def test_groups_count_one_by_one():
    layer = _circular(nn.Conv2d, 4, 2, 3, groups=2)
    found = OrthogonalConvPenalty(1.0)(layer) * 36
    matrix = torch.block_diag(*[conv_transform_matrix(kernel, 6) for kernel in layer.weight.detach().chunk(2)])
    assert_close(found, _distance(matrix), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_a_linear_layer_is_the_distance_of_its_matrix(shape):
    layer = nn.Linear(*shape).double()
    assert_close(OrthogonalConvPenalty(0.5)(layer), 0.5 * _distance(layer.weight.detach()))


def test_a_kernel_that_copies_channels_is_free():
    layer = _circular(nn.Conv2d, 3, 2, 3)
    with torch.no_grad():
        layer.weight.zero_()[:, :, 1, 1] = torch.eye(2, 3)
    assert OrthogonalConvPenalty(1.0)(layer).item() == 0


def test_one_tap_of_padding_would_miss_products_that_count():
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[0, 0, 0, 0] = kernel[0, 0, 2, 2] = 0.5**0.5
    layer = _circular(nn.Conv2d, 1, 1, 3)
    layer.weight = nn.Parameter(kernel)
    short = nn.functional.conv2d(kernel, kernel, padding=1)
    short[0, 0, 1, 1] -= 1
    assert_close(short.norm().item(), 0.0)
    assert_close(OrthogonalConvPenalty(1.0)(layer).item(), 0.5)
    assert_close(_distance(conv_transform_matrix(kernel, 6)).item() / 36, 0.5)


def test_less_of_it_makes_singular_values_one():
    layer = _circular(nn.Conv2d, 3, 6, 3)
    step = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(800):
        step.zero_grad()
        OrthogonalConvPenalty(1.0)(layer).backward()
        step.step()
    values = torch.linalg.svdvals(conv_transform_matrix(layer.weight.detach(), 8))
    assert 0.99 < values.min() <= values.max() < 1.01


def test_what_it_cannot_price_is_named():
    with pytest.raises(ValueError, match="model must have a convolution"):
        OrthogonalConvPenalty()(nn.ReLU())
    with pytest.raises(ValueError, match="both stride and dilation"):
        OrthogonalConvPenalty()(nn.Conv2d(1, 1, 3, stride=2, dilation=2))
    with pytest.raises(ValueError, match="strength"):
        OrthogonalConvPenalty(-1.0)


def test_a_shared_kernel_counts_once_for_each_stride():
    one, again, strided = (_circular(nn.Conv2d, 3, 3, 3, stride) for stride in (1, 1, 2))
    again.weight = strided.weight = one.weight
    apart = sum(OrthogonalConvPenalty(1.0)(layer) for layer in (one, strided))
    assert_close(OrthogonalConvPenalty(1.0)(nn.Sequential(one, again, strided)), apart)
