import io

import numpy as np
import pytest
import torch
from scipy.special import inv_boxcox
from torch import nn
from torch.func import vmap
from torch.testing import assert_close

from lossworks.layers import NestedDropout
from lossworks.losses import EnsLoss, OneVsRestEnsLoss, pair_derivatives, sample_calibrated_derivatives
from lossworks.perturb import PGD, GaussianNoise

LAMBDAS = [-1.0, -0.3, 0.0, 0.5, 1.0]


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def margins(generator):
    return 3 * torch.randn(64, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_equals_the_algorithm_spelled_out_with_scipys_inverse_box_cox(margins, lam):
    draws = torch.randn(64, dtype=torch.float64, generator=seeded()).numpy()
    with np.errstate(all="ignore"):
        base = 1 + lam * draws
        value = np.where(base > 0, inv_boxcox(draws, lam), 0.0 if lam > 0 else np.inf)
    g = np.sort(np.maximum(-value, -1))
    wanted = np.empty(64)
    for rank, row in enumerate(np.argsort(margins.numpy())):
        wanted[row] = g[rank] / max(margins[row], 1) - 1e-6
    drawn = sample_calibrated_derivatives(margins, lam, seeded())
    assert_close(drawn, torch.from_numpy(wanted))


@pytest.mark.parametrize("lam", LAMBDAS)
def test_drawn_loss_is_calibrated_and_convex(margins, lam):
    g = sample_calibrated_derivatives(margins, lam, seeded())
    assert (g < 0).all()
    assert (g >= -1 - 1e-6).all()
    below_one = margins.sort().values <= 1
    assert (g[margins.argsort()][below_one].diff() >= 0).all()


def test_tail_falls_at_least_as_fast_as_one_over_the_margin():
    margins = torch.tensor([2.0, 10.0, 1e4])
    for seed in range(20):
        assert (sample_calibrated_derivatives(margins, 0.0, seeded(seed)) >= -1 / margins - 1e-6).all()


@pytest.mark.parametrize(
    "derivative",
    [lambda m: -torch.sigmoid(-m), lambda m: -(m < 1).double(), lambda m: -torch.exp(-m), lambda m: 2 * (m - 1)],
    ids=["logistic", "hinge", "exponential", "squared"],
)
def test_a_fixed_losss_derivatives_are_paired_back_to_that_loss(margins, derivative, generator):
    given = derivative(margins)
    shuffled = given[torch.randperm(64, generator=generator)]
    assert_close(pair_derivatives(shuffled, margins), given, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_paired_in_rising_order_and_equal_margins_share_them(dtype, generator):
    margins = torch.randint(-3, 4, (200, 2), generator=generator).to(dtype) * 1e-3
    margins[::7] = -0.0
    margins[3], margins[5], margins[8] = 3e38, -3e38, -torch.inf
    draws = -torch.rand(200, 2, generator=generator, dtype=dtype)
    wanted = np.empty((200, 2))
    for column in range(2):
        own = margins[:, column].numpy()
        rising = np.sort(draws[:, column].numpy())[np.argsort(np.argsort(own, kind="stable"))]
        for value in np.unique(own):
            wanted[own == value, column] = rising[own == value].mean()
    assert_close(pair_derivatives(draws, margins), torch.from_numpy(wanted).to(dtype))
    stacked = vmap(pair_derivatives)(draws[None], margins[None])
    assert_close(stacked[0], torch.from_numpy(wanted).to(dtype))


def test_shuffling_the_rows_shuffles_their_derivatives(margins, generator):
    order = torch.randperm(64, generator=generator)
    whole = sample_calibrated_derivatives(margins, 0.0, seeded())
    assert_close(sample_calibrated_derivatives(margins[order], 0.0, seeded()), whole[order], atol=0, rtol=0)


def test_margins_that_are_tied_up_to_rounding_share_the_mean_of_their_draws():
    draws = torch.tensor([-0.9, -0.5, -0.4, -0.2, -0.1], dtype=torch.float64)
    for nudge in (0.0, 4e-16, -4e-16):
        margins = torch.tensor([1.0, 2.0, 1.0 + nudge, -3.0, 1.0 - nudge], dtype=torch.float64)
        wanted = torch.tensor([-1.1 / 3, -0.1, -1.1 / 3, -0.9, -1.1 / 3], dtype=torch.float64)
        assert_close(pair_derivatives(draws, margins), wanted)
        assert_close(pair_derivatives(draws.flip(0), margins.flip(0)).flip(0), wanted)


def test_a_row_that_comes_twice_has_one_gradient_however_the_model_rounds(generator):
    logits = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    logits[7] = logits[2]
    target = torch.arange(12) % 3
    target[7] = target[2]
    found = []
    for nudge in (0.0, 1e-15, -1e-15):
        moved = logits.clone()
        moved[7] += nudge
        found.append(OneVsRestEnsLoss(generator=seeded(), reduction="none")(moved, target))
        assert_close(found[-1][7], found[-1][2], rtol=1e-12, atol=1e-12)
        assert_close(found[-1], found[0], rtol=1e-12, atol=1e-12)


def test_gradient_is_the_drawn_derivative_and_value_its_product_with_the_margin(margins):
    target = (torch.arange(64) % 2).double()
    score = ((2 * target - 1) * margins).requires_grad_()
    losses = EnsLoss(generator=seeded(), reduction="none")(score, target)
    losses.sum().backward()
    drawn = sample_calibrated_derivatives(margins, 0.0, seeded())
    assert_close(losses, drawn * margins)
    assert_close(score.grad, drawn * (2 * target - 1))


def test_one_vs_rest_is_the_sum_of_binary_problems_over_classes(generator):
    logits = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    target = torch.randint(3, (20,), generator=generator)
    margins = torch.where(torch.arange(3) == target[:, None], logits, -logits)
    normal = torch.randn(20, 3, dtype=torch.float64, generator=seeded())
    wanted = torch.zeros(20, dtype=torch.float64)
    for k in range(3):
        paired = pair_derivatives(-normal[:, k].exp().clamp(max=1), margins[:, k])
        wanted += (paired / margins[:, k].clamp(min=1) - 1e-6) * margins[:, k]
    assert_close(OneVsRestEnsLoss(generator=seeded(), reduction="none")(logits, target), wanted)


def test_one_vs_rest_ignored_rows_have_no_loss_and_no_gradient(generator):
    logits = torch.randn(10, 3, generator=generator, requires_grad=True)
    target = torch.tensor([0, 1, -100, 2, 1, -100, 0, 0, 2, 1])
    losses = OneVsRestEnsLoss(generator=seeded(), reduction="none")(logits, target)
    losses.sum().backward()
    ignored = target == -100
    assert (losses[ignored] == 0).all()
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).all()


def test_draws_come_from_the_generator_alone(margins):
    target = torch.ones_like(margins)
    state = torch.get_rng_state()
    one, other = (EnsLoss(generator=seeded(3))(margins, target) for _ in range(2))
    assert_close(one, other, atol=0, rtol=0)
    assert (torch.get_rng_state() == state).all()
    assert EnsLoss(generator=seeded(4))(margins, target) != one


def test_lambda_is_drawn_anew_every_so_many_training_calls(margins):
    loss = EnsLoss(0.25, resample_lambda_every=3, generator=seeded())
    target = torch.ones_like(margins)
    seen = []
    for _ in range(9):
        loss(margins, target)
        seen.append(float(loss.drawn_lambda))
    assert seen[:3] == [0.25] * 3
    assert seen[3] == seen[5] != 0.25
    assert seen[6] == seen[8] != seen[5]
    assert all(-1 <= lam <= 1 for lam in seen)
    loss.eval()
    for _ in range(4):
        loss(margins, target)
    assert float(loss.drawn_lambda) == seen[-1]
    assert int(loss.calls) == 9


def test_stacked_replicas_draw_differently(margins):
    loss, target = EnsLoss(reduction="none"), torch.ones_like(margins)
    values = vmap(lambda score: loss(score, target), randomness="different")(margins.expand(3, 64))
    assert (values[0] != values[1]).any()
    assert (values[1] != values[2]).any()


def test_draws_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="draws must have the shape of margins"):
        pair_derivatives(torch.zeros(3), torch.zeros(4))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("every", [None, 2])
def test_a_training_that_goes_on_from_a_state_draws_what_one_that_never_stopped_does(margins, every):
    target = torch.ones(64)
    whole = EnsLoss(0.0, every, seeded())
    wanted = [float(whole(margins, target)) for _ in range(6)]
    first, second = EnsLoss(0.0, every, seeded()), EnsLoss(0.0, every, seeded(1))
    found = [float(first(margins, target)) for _ in range(3)]
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    assert found + [float(second(margins, target)) for _ in range(3)] == wanted


@pytest.mark.parametrize(
    "make",
    [
        lambda own: GaussianNoise(generator=own),
        lambda own: NestedDropout(4, generator=own),
        lambda own: PGD(0.1, generator=own),
    ],
)
def test_every_part_has_its_generator_in_its_state(make):
    drawn = seeded()
    torch.rand(5, generator=drawn)
    state = nn.Sequential(make(drawn)).state_dict()
    after = torch.rand(3, generator=drawn)
    other = seeded(1)
    nn.Sequential(make(other)).load_state_dict(saved_and_loaded(state))
    assert torch.equal(torch.rand(3, generator=other), after)


def test_a_state_without_a_generator_loads_and_one_of_another_kind_is_refused():
    without, drawn = EnsLoss(0.0, 2), seeded()
    assert set(without.state_dict()) == {"drawn_lambda", "calls"}
    EnsLoss(0.0, 2, drawn).load_state_dict(without.state_dict())
    assert torch.equal(torch.rand(3, generator=drawn), torch.rand(3, generator=seeded()))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"generator"'):
        without.load_state_dict(EnsLoss(0.0, 2, drawn).state_dict())
    with pytest.raises(RuntimeError, match='"generator" is no state of a generator on cpu'):
        EnsLoss(generator=drawn).load_state_dict({"generator": torch.zeros(16, dtype=torch.uint8)})
