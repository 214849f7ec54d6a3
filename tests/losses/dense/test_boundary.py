import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.losses import BoundaryAwarePseudoLabelLoss, ConfidenceWeightedCrossEntropyLoss, sobel_boundary_mask
from lossworks.select import dynamic_confidence_threshold

ACROSS = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def by_planes(labels, classes, padding):
    """Sobel's filters on the indicator of each class, as convolutions."""
    planes = F.one_hot(labels, classes).movedim(-1, 1).float().reshape(-1, 1, *labels.shape[1:])
    planes = F.pad(planes, (1, 1, 1, 1), mode="replicate" if padding == "replicate" else "constant")
    size = sum(F.conv2d(planes, kernel[None, None]).abs() for kernel in (ACROSS, ACROSS.T))
    return size.reshape(len(labels), classes, *labels.shape[1:]).sum(dim=1) > 0


@pytest.fixture
def images(generator):
    output = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (3, 5, 6), generator=generator)
    target[torch.rand(3, 5, 6, generator=generator) < 0.3] = -100
    confidence = torch.rand(3, 5, 6, generator=generator, dtype=torch.float64)
    boundary = torch.rand(3, 5, 6, generator=generator) < 0.4
    return output, target, confidence, boundary


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("shape", [(4, 7, 6), (2, 1, 5), (2, 4, 1), (0, 3, 3)])
def test_the_mask_is_that_of_convolutions(padding, shape, generator):
    for classes in (2, 3, 6):
        labels = torch.randint(classes, shape, generator=generator)
        if not len(labels):
            assert sobel_boundary_mask(labels, padding).shape == shape
            continue
        assert torch.equal(sobel_boundary_mask(labels, padding), by_planes(labels, classes, padding))


def test_the_mask_does_not_depend_on_names_of_classes(generator):
    labels = torch.randint(3, (2, 8, 8), generator=generator)
    renamed = torch.tensor([255, -7, 12])[labels]
    for padding in ("replicate", "zeros"):
        assert torch.equal(sobel_boundary_mask(labels, padding), sobel_boundary_mask(renamed, padding))


def test_one_class_has_no_boundary_where_zeros_make_the_border_one():
    labels = torch.full((1, 5, 5), 2)
    assert not sobel_boundary_mask(labels).any()
    border = torch.ones(5, 5, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert torch.equal(sobel_boundary_mask(labels, "zeros")[0], border)


def test_a_thin_line_is_seen_from_beside_it():
    labels = torch.zeros(1, 5, 5, dtype=torch.int64)
    labels[:, :, 2] = 1
    assert sobel_boundary_mask(labels)[0, 2].tolist() == [False, True, False, True, False]


def test_equals_its_sums_pixel_by_pixel(images):
    output, target, confidence, boundary = images
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    first = second = kept = edge = 0.0
    for i, y, x in (target != -100).nonzero().tolist():
        loss = -output[i, :, y, x].log_softmax(0)[target[i, y, x]]
        first, kept = first + weight[i] * confidence[i, y, x] ** 1.5 * loss, kept + weight[i]
        if boundary[i, y, x]:
            second, edge = second + weight[i] * loss, edge + weight[i]
    found = ConfidenceWeightedCrossEntropyLoss(1.5)(output, target, confidence, sample_weight=weight)
    assert_close(found, first / kept)
    found = BoundaryAwarePseudoLabelLoss(1.5, 0.7)(output, target, confidence, boundary, sample_weight=weight)
    assert_close(found, first / kept + 0.7 * second / edge)


def test_without_confidence_or_boundary_it_is_cross_entropy(images):
    output, target, confidence, _ = images
    plain = F.cross_entropy(output, target)
    assert_close(BoundaryAwarePseudoLabelLoss(0.0, 0.0)(output, target, confidence), plain)
    assert_close(ConfidenceWeightedCrossEntropyLoss()(output, target), plain)
    constant = torch.full_like(confidence, 0.6)
    assert_close(ConfidenceWeightedCrossEntropyLoss(2.0)(output, target, constant), 0.6**2 * plain)
    flat = BoundaryAwarePseudoLabelLoss()(output[:, :, 0, 0], target[:, 0, 0].clamp(min=0))
    assert_close(flat, F.cross_entropy(output[:, :, 0, 0], target[:, 0, 0].clamp(min=0)))


def test_the_boundary_is_that_of_the_targets_by_default(images):
    output, target, _, _ = images
    target = target.clamp(min=0)
    given = BoundaryAwarePseudoLabelLoss()(output, target, None, sobel_boundary_mask(target))
    assert_close(BoundaryAwarePseudoLabelLoss()(output, target), given)


def test_nothing_left_is_0_with_no_gradient(images):
    output, target, confidence, boundary = images
    output = output.clone().requires_grad_()
    value = BoundaryAwarePseudoLabelLoss()(output, torch.full_like(target, -100), confidence, boundary)
    value.backward()
    assert value == 0
    assert not output.grad.any()


def test_gradients_are_those_of_finite_differences(images):
    output, target, confidence, boundary = (part[:1, ..., :2] for part in images)
    loss = BoundaryAwarePseudoLabelLoss()
    assert torch.autograd.gradcheck(
        lambda z: loss(z, target, confidence, boundary), output.clone().contiguous().requires_grad_()
    )


def test_the_threshold_is_its_formula_and_nearly_constant_at_the_authors_values():
    confidence = torch.linspace(0.2, 1.0, 5, dtype=torch.float64)
    wanted = 1.1 / (1 + 2.718281828459045 ** (-3.0 * 0.1))
    assert_close(float(dynamic_confidence_threshold(confidence, 1.1, 3.0)), wanted)
    least, most = (float(dynamic_confidence_threshold(torch.full((2, 3), mean))) for mean in (0.0, 1.0))
    assert 0.3 <= least < most < 0.338
    assert dynamic_confidence_threshold(torch.ones(1), base=5.0) == 0.8
    assert dynamic_confidence_threshold(torch.ones(1), base=0.1) == 0.3


def test_says_what_is_wrong(images):
    output, target, confidence, boundary = images
    loss = BoundaryAwarePseudoLabelLoss()
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got .*\.\.2"):
        loss(output, target, 2 * torch.ones_like(confidence))
    with pytest.raises(ValueError, match="confidence must have the shape of target"):
        loss(output, target, confidence[0])
    with pytest.raises(TypeError, match="boundary must be bool"):
        loss(output, target, confidence, boundary.float())
    with pytest.raises(ValueError, match=r"output must be \(n, C, \.\.\.\) and target"):
        loss(output, target[0])
    with pytest.raises(ValueError, match="target must be in"):
        loss(output, target + 4)
    with pytest.raises(ValueError, match="boundary_weight must be finite and >= 0"):
        BoundaryAwarePseudoLabelLoss(boundary_weight=-1.0)
    with pytest.raises(ValueError, match="padding must be one of"):
        sobel_boundary_mask(target, "reflect")
    with pytest.raises(ValueError, match="high must be at least low"):
        dynamic_confidence_threshold(confidence, low=0.9)
    with pytest.raises(ValueError, match="at least one entry"):
        dynamic_confidence_threshold(confidence[:0])
