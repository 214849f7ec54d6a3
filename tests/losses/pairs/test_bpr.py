import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.testing import assert_close

from lossworks.comparison import InputError
from lossworks.comparison.candidates import candidate_from_name
from lossworks.comparison.tasks.known import find_task
from lossworks.losses import BPRLoss, LogisticLoss
from lossworks.objective import Objective


@pytest.fixture
def scores(generator):
    return torch.randn(2, 12, generator=generator, dtype=torch.float64)


def test_is_the_log_loss_of_the_difference_as_scikit_learn_has_it(scores):
    taken, other = scores
    chance = 1 / (1 + np.exp(-(taken - other).numpy()))
    assert BPRLoss()(taken, other).item() == pytest.approx(log_loss(np.ones(12), chance, labels=[0, 1]))
    assert_close(BPRLoss(reduction="none")(taken, other), LogisticLoss(reduction="none")(taken - other, torch.ones(12)))


def test_the_gradient_reaches_both_scores_with_opposite_signs(scores):
    taken, other = (row.requires_grad_() for row in scores.unbind())
    up, down = torch.autograd.grad(BPRLoss(reduction="sum")(taken, other), (taken, other))
    wanted = torch.sigmoid(other - taken).detach()
    assert_close(up, -wanted)
    assert_close(down, wanted)
    assert torch.autograd.gradcheck(BPRLoss(), (taken, other))


def test_reads_the_difference_alone_and_changes_by_it_when_the_two_are_exchanged(scores):
    taken, other = scores
    loss = BPRLoss(reduction="none")
    assert_close(loss(taken + 3, other + 3), loss(taken, other))
    assert_close(loss(other, taken) - loss(taken, other), taken - other)


def test_far_apart_it_is_linear_or_nothing():
    scores = torch.tensor([1e4, -1e4, 0.0])
    assert BPRLoss(reduction="none")(scores, -scores).tolist() == pytest.approx([0, 2e4, np.log(2)])


def test_the_gradient_in_both_scores_survives_an_objective_and_halves(scores):
    table = torch.nn.Embedding(6, 4)
    users, taken, others = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5])

    def score(items):
        return (table(users) * table(items)).sum(dim=1)

    Objective(BPRLoss())(score, taken, score(others)).backward()
    assert (table.weight.grad.abs().sum(dim=1) > 0).all()
    halves = scores.bfloat16().requires_grad_()
    BPRLoss()(*halves).backward()
    assert (halves.grad != 0).all()


@pytest.mark.parametrize("task", ["binary", "multiclass", "real", "counts"])
def test_no_table_has_its_targets(task):
    with pytest.raises(InputError, match=f"'BPRLoss' is for pairs of scores, but the target is {task}"):
        candidate_from_name("BPRLoss", "", find_task(task))


def test_scores_that_do_not_pair_are_refused(scores):
    with pytest.raises(ValueError, match="target must have the shape of output"):
        BPRLoss()(scores[0], scores[1, :1])
    with pytest.raises(TypeError, match="target must be floating-point"):
        BPRLoss()(scores[0], torch.ones(12, dtype=torch.int64))
