import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.spatial.distance import cdist
from scipy.special import softmax
from torch.nn.functional import normalize
from torch.testing import assert_close

from lossworks.layers import PrototypeClassifier, calibrate_prototypes


@pytest.fixture
def points(generator):
    return torch.randn(3, 6, generator=generator).double(), torch.randn(5, 6, generator=generator).double()


def test_is_the_mixture_by_cosines_worked_through_with_scipy(points):
    new, base = points
    weights = softmax(16 * (1 - cdist(new, base, "cosine")), axis=1)
    expected = 0.7 * new.numpy() + 0.3 * weights @ base.numpy()
    assert_close(calibrate_prototypes(new, base, 0.3), torch.from_numpy(expected))


def test_alpha_is_from_nothing_to_a_point_in_the_hull_of_the_known(points):
    new, base = points
    assert torch.equal(calibrate_prototypes(new, base, 0.0), new)
    for point in calibrate_prototypes(new, base, 1.0).numpy():
        _, miss = nnls(np.vstack([base.numpy().T, np.ones(len(base))]), np.append(point, 1.0))
        assert miss < 1e-9


def test_a_sharp_tau_leaves_the_nearest_known_class_alone(points):
    new, base = points
    nearest = torch.from_numpy(cdist(new, base, "cosine").argmin(axis=1))
    assert_close(calibrate_prototypes(new, base, 1.0, tau=1e5), base[nearest])


def test_only_directions_decide_what_a_class_is_like(points):
    new, base = points
    drawn = calibrate_prototypes(new, base, 1.0)
    assert_close(calibrate_prototypes(9 * new, base, 1.0), drawn)
    assert_close(calibrate_prototypes(1e-200 * new, base, 1.0), drawn)


def test_published_code_brings_the_mixture_to_length_one_and_out_of_the_hull(points):
    new, base = (normalize(rows) for rows in points)
    ours = calibrate_prototypes(new, base, 1.0)
    published = normalize((16 * new @ base.T).softmax(dim=1) @ base)
    assert_close(published, normalize(ours))
    assert bool((ours.norm(dim=1) < 0.999).all())


def test_logits_are_scaled_cosines_to_each_prototype(points):
    x, prototypes = points
    expected = 16 * (1 - cdist(x, prototypes, "cosine"))
    assert_close(PrototypeClassifier(prototypes)(x), torch.from_numpy(expected))


def test_every_place_of_a_map_is_a_row(points, generator):
    head = PrototypeClassifier(points[1])
    maps = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    flat = head(maps.movedim(1, -1).reshape(-1, 6))
    assert_close(head(maps).movedim(1, -1).reshape(-1, 5), flat)
    assert torch.autograd.gradcheck(head, maps.requires_grad_())


def test_extremes_stay_finite_and_no_feature_is_no_answer(points):
    head = PrototypeClassifier(points[1].float())
    for dtype, size in ((torch.float32, 1e30), (torch.float16, 6e4), (torch.bfloat16, 1e30)):
        x = (size * torch.ones(2, 6)).to(dtype)
        found = head(x)
        assert found.dtype == dtype
        assert bool((found.abs() <= 16).all())
        assert head(0 * x).tolist() == [[0.0] * 5] * 2


def test_classes_that_come_later_stand_behind_the_known(generator):
    centres = 4 * torch.eye(6)
    target = torch.arange(60) % 6
    x = centres[target] + torch.randn(60, 6, generator=generator)
    means = torch.stack([x[target == k].mean(dim=0) for k in range(6)])
    head = PrototypeClassifier(torch.cat([means[:4], calibrate_prototypes(means[4:], means[:4], 0.3)]))
    assert float((head(x).argmax(dim=1) == target).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate_prototypes(torch.ones(2, 3), torch.ones(2, 4)), r"new must have shape \(classes, 4\)"),
        (lambda: calibrate_prototypes(torch.ones(2, 3), torch.ones(0, 3)), "base must have shape"),
        (lambda: calibrate_prototypes(torch.ones(2, 3), torch.ones(1, 3), 1.5), "alpha"),
        (lambda: calibrate_prototypes(torch.ones(2, 3), torch.ones(1, 3), tau=0.0), "tau"),
        (lambda: PrototypeClassifier(torch.zeros(2, 3)), "prototypes must be finite and not 0, that of class 0 is not"),
        (lambda: PrototypeClassifier(torch.ones(3)), "prototypes must have shape"),
        (lambda: PrototypeClassifier(torch.ones(2, 3), tau=-1.0), "tau"),
        (lambda: PrototypeClassifier(torch.ones(2, 3))(torch.ones(4, 2)), r"x must have shape \(n, 3, \.\.\.\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_directions_of_half_precision_are_found_in_float32(dtype):
    """The squares of these features are beyond the largest number of float16."""
    x = torch.tensor([[3e4, 0.0, 4e4], [1e-4, 1e-4, 0.0]], dtype=dtype)
    head = PrototypeClassifier(torch.eye(3))
    assert_close(head(x), head(x.float()).to(dtype))
    assert bool(head(x)[0].isfinite().all())
