import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.testing import assert_close

from lossworks.certify import RepresentationConsistencyLoss, consistency_curriculum, karras_sigmas


class TwoHeads(nn.Module):
    """A network that is told how noisy its input is."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 5)
        self.double()
        self.asked = []

    def forward(self, x, sigma):
        self.asked.append((x.detach(), sigma))
        hidden = torch.tanh(self.body(x / (sigma.square() + 0.25).sqrt()[:, None]) + sigma.log()[:, None] / 10)
        return self.first(hidden), self.second(hidden)


@pytest.fixture
def case(generator):
    return (TwoHeads(0), TwoHeads(1), *torch.randn(4, 6, 4, generator=generator, dtype=torch.float64))


def nce(features, partner, tau):
    scores = cosine_similarity(features[:, None], partner[None], dim=2) / tau
    return cross_entropy(scores, torch.arange(len(features)), reduction="none")


def test_the_levels_fall_from_the_most_to_the_least_noise_in_even_steps_of_their_root():
    levels = karras_sigmas(21)
    assert levels[0] == 80.0
    assert levels[-1] == 0.002
    assert (levels.diff() < 0).all()
    steps = levels.pow(1 / 7).diff()
    assert_close(steps, torch.full_like(steps, (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 20))
    assert_close(karras_sigmas(5, 1.0, 3.0, rho=1.0), torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0], dtype=torch.float64))


def test_the_three_terms_are_their_equation_spelled_out(case):
    online, target, x, view1, view2, noise = case
    loss = RepresentationConsistencyLoss(tau=0.3, sigma_min=0.01, sigma_max=5.0)
    terms = loss(online, target, x, view1, view2, index=2, num_scales=5, noise=noise)
    levels = karras_sigmas(5, 0.01, 5.0)

    def at(network, clean, level):
        return network(clean + levels[level] * noise, levels[level].repeat(6))

    contrast = nce(at(online, view1, 4)[0], at(target, view2, 4)[0], 0.3)
    contrast = contrast + nce(at(online, view2, 4)[0], at(target, view1, 4)[0], 0.3)
    consistency = nce(at(online, x, 2)[1], at(online, x, 3)[1].detach(), 0.3)
    assert_close(terms.contrast, contrast)
    assert_close(terms.consistency, consistency)
    assert_close(terms.total, (contrast + consistency).mean())
    found, expected = (
        torch.autograd.grad(value, online.body.weight) for value in (terms.total, (contrast + consistency).mean())
    )
    assert_close(found, expected)


def test_the_target_network_and_the_less_noisy_side_have_no_gradient(case):
    online, target, *rest, noise = case
    RepresentationConsistencyLoss()(online, target, *rest, index=0, num_scales=21, noise=noise).total.backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in online.parameters())


def test_views_may_swap_and_rows_may_be_shuffled(case):
    online, target, x, view1, view2, noise = case
    loss = RepresentationConsistencyLoss()
    terms = loss(online, target, x, view1, view2, index=7, num_scales=11, noise=noise)
    swapped = loss(online, target, x, view2, view1, index=7, num_scales=11, noise=noise)
    assert_close(swapped.contrast, terms.contrast)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    rows = [rows[order] for rows in (x, view1, view2)]
    shuffled = loss(online, target, *rows, index=7, num_scales=11, noise=noise[order])
    assert_close(shuffled.contrast, terms.contrast[order])
    assert_close(shuffled.consistency, terms.consistency[order])


def test_every_point_of_a_row_has_the_same_noise_and_the_network_is_told_how_much(case):
    online, target, x, view1, view2, noise = case
    RepresentationConsistencyLoss()(online, target, x, view1, view2, index=0, num_scales=21, noise=noise)
    levels = karras_sigmas(21)
    for (seen, told), clean, level in zip(online.asked, (x, view1, view2, x), (1, 20, 20, 0), strict=True):
        assert_close(told, levels[level].repeat(6))
        assert_close((seen - clean) / levels[level], noise, rtol=1e-9, atol=1e-9)


def test_the_curriculum_rises_from_where_it_starts_to_where_it_ends():
    steps = [consistency_curriculum(k, 1000, sharpness=15.0) for k in range(1001)]
    decays, scales = zip(*steps, strict=True)
    assert decays[0] == 0.99
    assert decays[-1] == pytest.approx(0.99 + 0.0099 * math.tanh(7.5), abs=1e-12)
    assert all(before < after for before, after in pairwise(decays))
    assert scales[0] == 21
    stage = math.ceil(1000 / math.log2(5))
    assert scales[1 : stage + 1] == (41,) * stage
    assert set(scales[stage + 1 :]) == {81}


@pytest.mark.parametrize("step", [0, 1, 17, 60, 100])
def test_the_decay_is_that_of_published_code(step):
    first, last, sharpness = 0.9, 0.999, 10.0
    e = math.sqrt(step / 100 * (last**2 - first**2) + first**2)
    c = 2 / (1 + math.exp(-sharpness * (e - first) / (last - first))) - 1
    found = consistency_curriculum(step, 100, start_decay=first, end_decay=last).decay
    assert found == pytest.approx(c * last + (1 - c) * first, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"online": 3}, "online"),
        ({"x": torch.ones(6, 4).long()}, "x must be"),
        ({"view2": torch.ones(6, 5)}, "view2"),
        ({"noise": torch.ones(5, 4)}, "noise"),
        ({"index": 20}, "index"),
        ({"num_scales": 1}, "num_scales"),
    ],
)
def test_bad_inputs_are_named(case, change, message):
    given = dict(zip(("online", "target", "x", "view1", "view2", "noise"), case, strict=True))
    with pytest.raises((ValueError, TypeError), match=message):
        RepresentationConsistencyLoss()(**{**given, "index": 3, "num_scales": 21, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RepresentationConsistencyLoss(tau=0.0), "tau"),
        (lambda: RepresentationConsistencyLoss(sigma_min=2.0, sigma_max=1.0), "sigma_max"),
        (lambda: karras_sigmas(1), "num_scales"),
        (lambda: karras_sigmas(5, rho=0.0), "rho"),
        (lambda: consistency_curriculum(5, 4), "step"),
        (lambda: consistency_curriculum(0, 4, end_scales=10), "end_scales"),
        (lambda: consistency_curriculum(0, 4, end_decay=0.9), "end_decay"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match=r"step must be in \[0, 1000\], got -1"):
        consistency_curriculum(-1, 1000)
