import pytest
import torch
from torch.testing import assert_close

from lossworks.weights import KLDRO, PMDROWeights


def test_is_the_update_by_hand(generator):
    """w to the power 1 - lr * entropy, times e^(lr * loss), and normalised."""
    weights, by_hand = PMDROWeights(6, lr=0.4, entropy=0.5), torch.ones(6, dtype=torch.float64)
    for _ in range(4):
        rows = torch.randperm(6, generator=generator)[:4]
        losses = torch.rand(4, generator=generator, dtype=torch.float64)
        by_hand[rows] = by_hand[rows] ** (1 - 0.4 * 0.5) * (0.4 * losses).exp()
        assert_close(weights(losses, index=rows), by_hand[rows] / by_hand[rows].mean())


def test_comes_to_kl_dro_where_losses_stand_still(generator):
    losses = torch.rand(5, generator=generator, dtype=torch.float64)
    weights = PMDROWeights(5, lr=0.5, entropy=0.7)
    for _ in range(100):
        found = weights(losses, index=torch.arange(5))
    assert_close(found, KLDRO(temperature=0.7)(losses))


def test_without_a_price_it_keeps_every_loss():
    weights = PMDROWeights(3, lr=0.1, entropy=0.0)
    for loss in (1.0, 2.0, 4.0):
        weights(torch.tensor([loss, 0.0]), index=torch.tensor([2, 0]))
    assert_close(weights.log_weights, torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64))


def test_what_is_remembered_does_not_depend_on_the_other_rows(generator):
    losses = torch.rand(6, generator=generator)
    whole, parts = PMDROWeights(6), PMDROWeights(6)
    whole(losses, index=torch.arange(6))
    for rows in torch.arange(6).split(2):
        parts(losses[rows], index=rows)
    assert_close(whole.log_weights, parts.log_weights, atol=0, rtol=0)


def test_the_weighted_mean_keeps_its_size_where_published_code_divides_twice():
    """Weights with the sum 1 whose weighted sum is divided by the batch's size once more shrink the loss by it."""
    losses = torch.tensor([1.0, 1.0, 1.0, 1.0])
    ours = (losses * PMDROWeights(4)(losses, index=torch.arange(4))).mean()
    published = (losses * torch.full((4,), 0.25)).sum() / 4
    assert_close(ours, torch.tensor(1.0))
    assert_close(published, torch.tensor(0.25))


def test_repeated_unnumbered_and_idle_rows():
    weights = PMDROWeights(3, lr=1.0, entropy=0.0)
    weights(torch.tensor([1.0, 3.0, 5.0]), index=torch.tensor([1, 1, -1]))
    assert weights.log_weights.tolist() == [0, 2, 0]
    weights.eval()(torch.tensor([9.0]), index=torch.tensor([0]))
    assert weights.log_weights.tolist() == [0, 2, 0]


def test_an_unnumbered_row_starts_from_no_memory_and_leaves_none():
    """Whatever row 0 remembers, a row without a number has its own step alone."""
    weights = PMDROWeights(3, lr=0.5, entropy=0.5)
    weights(torch.tensor([8.0, 1.0]), index=torch.tensor([0, 2]))
    held = weights.log_weights.clone()
    found = weights(torch.tensor([1.0, 3.0]), index=torch.tensor([-1, 1]))
    powers = torch.tensor([0.5, 1.5]).exp()
    assert_close(found, powers / powers.mean())
    assert weights.log_weights[[0, 2]].tolist() == held[[0, 2]].tolist()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"lr \* entropy must be at most 1, got 1.5"):
        PMDROWeights(3, lr=3.0, entropy=0.5)
    with pytest.raises(ValueError, match="needs index="):
        PMDROWeights(3)(torch.ones(2))
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\)"):
        PMDROWeights(3)(torch.ones(2), index=torch.tensor([0, 3]))
