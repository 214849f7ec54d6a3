import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.testing import assert_close

from lossworks.select import WADWeights


@pytest.fixture
def rows(generator):
    unlabelled = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    labelled = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    return unlabelled, labelled, torch.tensor([0, 1, 2, 0, 1, 2, 2, 0, 1])


def test_equals_nearest_neighbours_of_each_class(rows):
    unlabelled, labelled, target = rows
    found = WADWeights()(unlabelled, labelled, target, 3)
    similar = []
    for k in range(3):
        near = NearestNeighbors(n_neighbors=1, metric="cosine").fit(labelled[target == k].numpy())
        similar.append(1 - torch.from_numpy(near.kneighbors(unlabelled.numpy())[0][:, 0]))
    similar = torch.stack(similar, dim=1)
    ordered = similar.sort(dim=1, descending=True).values
    assert_close(found.similarities, similar)
    assert torch.equal(found.pseudo, similar.argmax(dim=1))
    assert_close(found.weights, ordered[:, 0] - ordered[:, 1])
    assert_close(found.weights, ordered[:, 0] * (1 - ordered[:, 1] / ordered[:, 0]))


def test_weights_are_in_their_range_and_read_directions_alone(rows, generator):
    unlabelled, labelled, target = rows
    found = WADWeights()(unlabelled, labelled, target, 3)
    assert ((found.weights >= 0) & (found.weights <= 2)).all()
    scale = 1 + torch.rand(12, 1, generator=generator, dtype=torch.float64)
    for one, other in zip(found, WADWeights()(scale * unlabelled, 7 * labelled, target, 3), strict=True):
        assert_close(one, other)
    far = WADWeights()(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]), 2)
    assert far.weights == 2


def test_a_labelled_row_is_its_own_class_and_classes_may_be_renamed(rows):
    unlabelled, labelled, target = rows
    own = WADWeights()(labelled, labelled, target, 3)
    assert torch.equal(own.pseudo, target)
    assert_close(own.similarities.amax(dim=1), torch.ones(9, dtype=torch.float64))
    names = torch.tensor([2, 0, 1])
    renamed = WADWeights()(unlabelled, labelled, names[target], 3)
    found = WADWeights()(unlabelled, labelled, target, 3)
    assert torch.equal(renamed.pseudo, names[found.pseudo])
    assert_close(renamed.weights, found.weights)


def test_ties_have_weight_0_and_a_right_angle_no_nan():
    labelled, target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1])
    found = WADWeights()(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), labelled, target, 2)
    assert found.weights.tolist() == [0, 0]


def test_a_class_without_labels_is_never_the_answer(rows):
    unlabelled, labelled, target = rows
    found = WADWeights()(unlabelled, labelled, target, 5)
    assert found.pseudo.max() < 3
    assert found.similarities[:, 3:].isinf().all()
    assert found.weights.isfinite().all()


def test_is_the_same_under_autocast(rows):
    unlabelled, labelled, target = rows
    wanted = WADWeights()(unlabelled.float(), labelled.float(), target, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = WADWeights()(unlabelled.float(), labelled.float(), target, 3)
    assert_close(found.weights, wanted.weights, atol=0, rtol=0)


def test_says_what_is_wrong(rows):
    unlabelled, labelled, target = rows
    wad = WADWeights()
    with pytest.raises(ValueError, match="labels of at least 2 classes, got 1"):
        wad(unlabelled, labelled, torch.zeros_like(target), 3)
    with pytest.raises(ValueError, match=r"target must be in \[0, 2\)"):
        wad(unlabelled, labelled, target, 2)
    with pytest.raises(ValueError, match="labelled must have 4 features"):
        wad(unlabelled, labelled[:, :3], target, 3)
    with pytest.raises(ValueError, match="unlabelled must be finite, got NaN or Inf in row 2"):
        wad(unlabelled.index_fill(0, torch.tensor([2]), torch.nan), labelled, target, 3)
    with pytest.raises(TypeError, match="target must be int64"):
        wad(unlabelled, labelled, target.int(), 3)
