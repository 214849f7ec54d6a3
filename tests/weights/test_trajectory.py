import pytest
import torch
from scipy.spatial import cKDTree
from torch.testing import assert_close

from lossworks.weights import effective_sample_size, trajectory_distance_weights


@pytest.fixture
def points(generator):
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(50, 3, **draw), torch.randn(7, 3, **draw)


def test_equals_a_kd_trees_distances_however_it_is_chunked(points):
    inputs, reference = points
    distances, _ = cKDTree(reference.numpy()).query(inputs.numpy())
    wanted = torch.from_numpy(distances**2).mul(-0.7).exp()
    for chunk in (1, 8, 1024):
        found = trajectory_distance_weights(inputs, reference, 0.7, normalize=False, chunk=chunk)
        assert_close(found, wanted)
    assert_close(trajectory_distance_weights(inputs, reference, 0.7), wanted / wanted.mean())


def test_no_strength_is_all_alike_and_a_large_one_the_nearest(points):
    inputs, reference = points
    assert_close(trajectory_distance_weights(inputs, reference, 0.0), torch.ones(50).double())
    sizes = [effective_sample_size(trajectory_distance_weights(inputs, reference, c)) for c in (0.0, 1.0, 10.0, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0].item() == pytest.approx(50)
    assert sizes[-1].item() == pytest.approx(1)


def test_a_rigid_motion_of_both_changes_nothing(points, generator):
    inputs, reference = points
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    moved = trajectory_distance_weights(inputs @ turn + 5, reference @ turn + 5)
    assert_close(moved, trajectory_distance_weights(inputs, reference))


def test_half_precision_is_measured_in_float32(points):
    inputs, reference = points
    weights = trajectory_distance_weights(inputs.half(), reference.half())
    assert weights.dtype == torch.float16
    assert_close(weights, trajectory_distance_weights(inputs.half().float(), reference.half().float()).half())


def test_bad_arguments_are_named(points):
    inputs, reference = points
    with pytest.raises(TypeError, match="normalize"):
        trajectory_distance_weights(inputs, reference, normalize=torch.tensor([]))
    with pytest.raises(ValueError, match="strength"):
        trajectory_distance_weights(inputs, reference, -1.0)
    with pytest.raises(ValueError, match="reference must have shape"):
        trajectory_distance_weights(inputs, reference[:, :2])
    with pytest.raises(ValueError, match="inputs must be finite"):
        trajectory_distance_weights(inputs * torch.nan, reference)
