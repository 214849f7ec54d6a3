import pytest
import torch
from torch.testing import assert_close

from lossworks.federated import principal_gradient_aggregate


def by_the_paper(updates, proportion):
    """Eigenvectors of the clients' products, then one projection after the other."""
    m = len(updates)
    shares, u = torch.linalg.eigh(updates @ updates.T / m)
    order = shares.argsort(descending=True)
    shares, u = shares[order], u[:, order]
    answer = torch.zeros(updates.shape[1], dtype=updates.dtype)
    for g in updates:
        for j in range(max(1, int(m * proportion))):
            w = updates.T @ u[:, j]
            projected = (g @ w) / (w @ w) * w
            answer += projected * g.norm() / projected.norm() * shares[j] / shares.sum() / m
    return answer


@pytest.mark.parametrize("proportion", [0.1, 0.8, 1.0])
@pytest.mark.parametrize("size", [5, 30])
def test_equals_the_papers_projections(proportion, size, generator):
    updates = torch.randn(5, size, generator=generator, dtype=torch.float64)
    assert_close(principal_gradient_aggregate(updates, proportion), by_the_paper(updates, proportion))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_clients_that_agree_keep_their_update(scale, generator):
    update = scale * torch.randn(7, generator=generator, dtype=torch.float64)
    assert_close(principal_gradient_aggregate(update.repeat(4, 1)) / scale, update / scale)


def test_one_number_is_averaged():
    assert_close(principal_gradient_aggregate(torch.tensor([[1.0], [-3.0], [5.0]])), torch.tensor([1.0]))


def test_turns_with_the_parameters(generator):
    updates = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    assert_close(principal_gradient_aggregate(updates @ turn), principal_gradient_aggregate(updates) @ turn)


def test_no_update_is_none():
    assert principal_gradient_aggregate(torch.zeros(3, 4)).tolist() == [0] * 4
    assert principal_gradient_aggregate(torch.zeros(3, 0)).shape == (0,)


@pytest.mark.parametrize(
    ("updates", "proportion", "message"),
    [
        (torch.ones(3), 0.8, "updates must have shape"),
        (torch.ones(2, 3).long(), 0.8, "updates must be floating-point"),
        (torch.tensor([[1.0], [torch.nan]]), 0.8, "client 1's is not"),
        (torch.ones(2, 3), 0.0, "k_proportion"),
    ],
)
def test_bad_arguments_are_named(updates, proportion, message):
    with pytest.raises((ValueError, TypeError), match=message):
        principal_gradient_aggregate(updates, proportion)


def test_a_client_across_a_direction_adds_nothing_along_it():
    """The second client is orthogonal to the only direction that is kept: its sign is 0, and it has no part."""
    updates = torch.tensor([[3.0, 0.0], [0.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
    assert_close(principal_gradient_aggregate(updates, 0.34), torch.tensor([6 * 18 / 19 / 3, 0.0], dtype=torch.float64))
    opposed = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    assert_close(principal_gradient_aggregate(opposed, 0.34), torch.tensor([5 / 3, 0.0], dtype=torch.float64))
