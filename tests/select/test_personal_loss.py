import pytest
import torch
from scipy.special import softmax
from scipy.stats import chisquare
from torch.testing import assert_close

from lossworks.select import PersonalLossResampler, personal_loss_weights


@pytest.fixture
def losses(generator):
    return 3 * torch.rand(6, 5, generator=generator, dtype=torch.float64)


def cost(users, items, others):
    """A loss that depends on all three."""
    return (0.3 * users + 0.7 * items + 0.1 * others).float() % 2.0


def test_weights_are_scipys_softmax_within_each_user(losses):
    found = personal_loss_weights(losses, 0.4)
    assert_close(found, torch.from_numpy(softmax(-losses.numpy() / 0.4, axis=1)))
    assert_close(personal_loss_weights(losses, torch.tensor(0.4, dtype=torch.float64)), found)


def test_a_constant_on_one_users_losses_changes_nothing_and_on_one_item_it_does(losses):
    moved = losses.clone()
    moved[2] += 50
    assert_close(personal_loss_weights(moved), personal_loss_weights(losses))
    moved[2, 0] += 1
    assert not torch.allclose(personal_loss_weights(moved)[2], personal_loss_weights(losses)[2])


def test_the_temperature_runs_from_the_smallest_loss_to_uniform(losses):
    smallest = torch.nn.functional.one_hot(losses.argmin(dim=1), 5).double()
    for temperature in (1e-4, 1e-300, 5e-324):
        assert_close(personal_loss_weights(losses, temperature), smallest)
    assert_close(personal_loss_weights(losses, 1e9), torch.full_like(losses, 0.2))
    assert personal_loss_weights(1e30 * losses.float(), 1e-30).isfinite().all()
    assert (personal_loss_weights(losses[:, :1]) == 1).all()


def test_weights_carry_no_gradient_and_halves_become_float32(losses):
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert not personal_loss_weights(losses.requires_grad_(), temperature).requires_grad
    assert personal_loss_weights(losses.detach().half()).dtype == torch.float32


def test_items_are_drawn_as_often_as_their_weights_say(generator):
    trials, pool = 20_000, torch.tensor([4, 7, 9, 12])
    resampler = PersonalLossResampler(4, 0.7, start_epoch=0, generator=generator)
    users, others = torch.full((trials,), 3), torch.full((trials,), 5)
    drawn = resampler(cost, users, pool.expand(trials, 4), others, epoch=0)
    expected = softmax(-cost(torch.tensor(3), pool, torch.tensor(5)).double().numpy() / 0.7)
    counts = [(drawn == item).sum().item() for item in pool]
    assert sum(counts) == trials
    assert chisquare(counts, trials * expected / expected.sum()).pvalue > 1e-3


def test_before_its_epoch_any_item_is_as_likely_and_no_loss_is_asked_for(generator):
    resampler = PersonalLossResampler(3, start_epoch=2, generator=generator)
    pool, column = torch.tensor([4, 7, 9]).expand(9000, 3), torch.zeros(9000, dtype=torch.int64)
    for epoch in range(2):
        drawn = resampler(lambda *_: pytest.fail("it asked"), column, pool, column, epoch)
        assert chisquare([(drawn == item).sum().item() for item in (4, 7, 9)]).pvalue > 1e-3
    asked = []
    resampler(lambda *columns: asked.append(columns) or cost(*columns), column, pool, column, 2)
    assert [tuple(rows.shape) for rows in asked[0]] == [(27_000,)] * 3


def test_every_item_is_held_against_its_own_user_and_other_item_without_gradients():
    users, others = torch.tensor([10, 20]), torch.tensor([1, 2])
    pool, asked = torch.tensor([[3, 4], [5, 6]]), []

    def loss(users, items, others):
        asked.extend(zip(users.tolist(), items.tolist(), others.tolist(), strict=True))
        assert not torch.is_grad_enabled()
        return cost(users, items, others)

    drawn = PersonalLossResampler(2, 1e-6, start_epoch=0)(loss, users, pool, others, 0)
    assert asked == [(10, 3, 1), (10, 4, 1), (20, 5, 2), (20, 6, 2)]
    best = [
        min(row, key=lambda item: cost(*torch.tensor([u, item, o]))) for u, row, o in ((10, (3, 4), 1), (20, (5, 6), 2))
    ]
    assert drawn.tolist() == best


def test_with_one_item_there_is_nothing_to_choose():
    users = torch.arange(4)
    drawn = PersonalLossResampler(1, start_epoch=0)(cost, users, users[:, None] + 3, users, 0)
    assert torch.equal(drawn, users + 3)


def test_a_pool_is_of_the_users_own_items_all_different_where_there_are_enough(generator):
    items, starts = torch.tensor([5, 6, 7, 8, 9, 1, 2, 3]), torch.tensor([0, 5, 5, 7, 8])
    users = torch.tensor([0, 2, 3, 0]).repeat(500)
    pool = PersonalLossResampler(3, generator=generator).draw_pool(users, items, starts)
    own = {0: {5, 6, 7, 8, 9}, 2: {1, 2}, 3: {3}}
    for user, row in zip(users.tolist(), pool.tolist(), strict=True):
        assert set(row) <= own[user]
        assert len(set(row)) == 3 or user != 0
    for user in (0, 2):
        drawn = pool[users == user].flatten()
        assert chisquare([(drawn == item).sum().item() for item in own[user]]).pvalue > 1e-3


def test_the_same_generator_draws_the_same():
    def drawn():
        resampler = PersonalLossResampler(2, start_epoch=0, generator=torch.Generator().manual_seed(3))
        users = torch.zeros(50, dtype=torch.int64)
        pool = resampler.draw_pool(users, torch.arange(9), torch.tensor([0, 9]))
        return pool, resampler(cost, users, pool, users, 0)

    for one, other in zip(drawn(), drawn(), strict=True):
        assert torch.equal(one, other)


def test_an_empty_batch_draws_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    resampler = PersonalLossResampler(2, start_epoch=0)
    pool = resampler.draw_pool(none, torch.arange(3), torch.tensor([0, 3]))
    assert pool.shape == (0, 2)
    assert resampler(cost, none, pool, none, 0).shape == (0,)


def test_says_what_is_wrong(losses):
    resampler, users = PersonalLossResampler(2, start_epoch=0), torch.tensor([0, 1])
    pool, items, starts = torch.tensor([[1, 2], [3, 4]]), torch.arange(4), torch.tensor([0, 2, 4])
    for call, error, message in (
        (lambda: PersonalLossResampler(0), ValueError, "pool_size must be >= 1"),
        (lambda: PersonalLossResampler(temperature=0.0), ValueError, "temperature must be finite and > 0"),
        (lambda: PersonalLossResampler(start_epoch=-1), ValueError, "start_epoch must be >= 0"),
        (lambda: PersonalLossResampler(generator=3), TypeError, "generator must be a torch.Generator"),
        (lambda: personal_loss_weights(losses[0]), ValueError, r"losses must have shape \(n, k\)"),
        (lambda: personal_loss_weights(losses / 0), ValueError, "losses must be finite, got NaN or Inf in row 0"),
        (lambda: resampler(None, users, pool, users, 0), TypeError, "loss must be a function"),
        (lambda: resampler(cost, users, pool[:, :1], users, 0), ValueError, r"pool_items must have shape \(2, 2\)"),
        (lambda: resampler(cost, users, pool, users[:1], 0), ValueError, r"neg_items must have shape \(2,\)"),
        (lambda: resampler(cost, users.float(), pool, users, 0), TypeError, "users must be int64"),
        (lambda: resampler(cost, users, pool, users, -1), ValueError, "epoch must be >= 0"),
        (lambda: resampler(lambda *_: torch.ones(3), users, pool, users, 0), ValueError, "loss must give 4 losses"),
        (lambda: resampler.draw_pool(users + 1, items, starts), ValueError, r"users must be in \[0, 2\), got 1..2"),
        (lambda: resampler.draw_pool(users, items, starts - 1), ValueError, "starts must rise from 0 to 4"),
        (lambda: resampler.draw_pool(users, items, torch.tensor([0, 4, 4])), ValueError, "user 1 has none"),
    ):
        with pytest.raises(error, match=message):
            call()
