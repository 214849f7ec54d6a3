import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.certify import (
    MixedClassifier,
    RandomizedSmoothing,
    mix_probabilities,
    mixed_lipschitz_radius,
    mixed_smoothing_radius,
)
from lossworks.certify.smoothing import ABSTAIN
from lossworks.perturb import PGD


def published_radius(p_first, p_second, alpha, sigma):
    """The paper's closed form."""
    mu = (1 - alpha) / alpha
    return sigma / 2 * max(0.0, norm.ppf(p_first / (1 + mu)) - norm.ppf((p_second + mu) / (1 + mu)))


@pytest.fixture
def logits(generator):
    return 3 * torch.randn(2, 20, 4, generator=generator, dtype=torch.float64)


def test_mixes_the_probabilities_of_the_two(logits):
    g, h = logits
    expected = 0.3 * (2 * g).softmax(dim=1) + 0.7 * (0.5 * h).softmax(dim=1)
    found = mix_probabilities(g, h, 0.7, std_scale=2.0, rob_scale=0.5)
    assert_close(found.exp(), expected)
    assert_close(found.logsumexp(dim=1), torch.zeros(20, dtype=torch.float64))


def test_the_ends_of_the_share_are_each_model_alone(logits):
    g, h = logits
    assert torch.equal(mix_probabilities(g, h, 0.0), g.log_softmax(dim=1))
    assert torch.equal(mix_probabilities(g, h, 1.0), h.log_softmax(dim=1))


def test_a_share_for_each_row_is_that_row_alone(logits):
    g, h = (part.reshape(5, 4, 4).mT for part in logits)
    shares = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    rows = [mix_probabilities(g[i : i + 1], h[i : i + 1], float(share)) for i, share in enumerate(shares.detach())]
    found = mix_probabilities(g, h, shares)
    assert_close(found.detach(), torch.cat(rows))
    found.sum().backward()
    assert shares.grad.isfinite().all()


def test_stays_finite_where_the_sum_of_the_probabilities_underflows():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    published = torch.log(0.5 * logits.softmax(dim=1) + 0.5 * logits.softmax(dim=1))
    assert published.isinf().any()
    found = mix_probabilities(logits, logits, 0.5)
    assert_close(found.detach(), torch.tensor([[0.0, -1e4, -2e4]]))
    cross_entropy(found, torch.tensor([2])).backward()
    assert_close(logits.grad, torch.tensor([[1.0, 0.0, -1.0]]))


def test_the_gradient_is_the_derivative(logits):
    g, h = (part[:3].clone().requires_grad_() for part in logits)
    alpha = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mix_probabilities, (g, h, alpha))


@pytest.mark.parametrize("alpha", [0.5, 0.6, 0.8, 0.95])
def test_a_robust_model_that_is_sure_enough_cannot_be_overruled_and_one_that_is_not_can(alpha, generator):
    h = 3 * torch.randn(400, 4, generator=generator, dtype=torch.float64)
    top = h.softmax(dim=1).topk(2, dim=1)
    sure = top.values[:, 0] - top.values[:, 1] > (1 - alpha) / alpha
    answers = []
    for rival in range(4):
        g = torch.full_like(h, -1e3)
        g[:, rival] = 1e3
        answers.append(mix_probabilities(g, h, alpha).argmax(dim=1))
    kept = (torch.stack(answers) == top.indices[:, 0]).all(dim=0)
    assert torch.equal(kept, sure)
    assert torch.equal(mixed_lipschitz_radius(h.softmax(dim=1), alpha, 1.0) > 0, sure)
    assert alpha == 0.5 or 0 < sure.double().mean() < 1


class Ramp(nn.Module):
    """Two classes on the line, whose probabilities change by exactly this much a unit of distance."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        p = (0.5 + self.slope * x[:, 0]).clamp(1e-12, 1 - 1e-12)
        return torch.stack([p, 1 - p], dim=1).log()


class Against(nn.Module):
    """As sure as can be of one class."""

    def forward(self, x):
        return torch.tensor([[0.0, 1e3]], dtype=x.dtype).expand(len(x), 2)


def test_on_the_line_the_lipschitz_radius_is_where_the_answer_changes():
    slope, alpha = 0.2, 0.8
    mixed = MixedClassifier(Against(), Ramp(slope), alpha)
    x = torch.tensor([[2.4], [2.0], [0.9], [-0.3]], dtype=torch.float64)
    found = mixed.certify(x, lipschitz=slope)
    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    assert (found.radius > 0).tolist() == [True, True, True, False]
    assert found.answer.tolist() == [0, 0, 0, ABSTAIN]
    for start, radius in zip(x[:3, 0], found.radius[:3], strict=True):
        answers = mixed((start + 0.999 * radius * grid)[:, None]).argmax(dim=1)
        assert bool((answers == 0).all())
        assert bool((mixed((start - 1.001 * radius).reshape(1, 1)).argmax(dim=1) == 1).all())


def test_no_attack_on_the_mixture_succeeds_within_the_lipschitz_radius(generator):
    torch.manual_seed(0)
    robust = nn.Linear(6, 3).double()
    # A class probability's gradient in the logits is at most sqrt(2) / 4 long.
    lipschitz = math.sqrt(2) / 4 * 4 * float(torch.linalg.matrix_norm(robust.weight.detach(), 2))
    standard = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    for parameter in standard.parameters():
        parameter.data *= 8
    mixed = MixedClassifier(standard, robust, 0.75, rob_scale=4.0)
    x = 2 * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    found = mixed.certify(x, lipschitz)
    sure = found.answer != ABSTAIN
    assert 10 < int(sure.sum()) < 60
    x, answer, radius = x[sure], found.answer[sure], found.radius[sure, None]

    def beaten(share):
        """How many answers change within this share of each row's radius, which is the ball's unit."""
        attack = PGD(share, steps=30, norm="l2", generator=generator)
        worst = attack(lambda z: cross_entropy(mixed(x + radius * z), answer, reduction="none"), torch.zeros_like(x))
        return int((mixed(x + radius * worst).argmax(dim=1) != answer).sum())

    assert beaten(0.999) == 0
    assert beaten(8.0) > 0


@pytest.mark.parametrize("alpha", [0.55, 0.7, 0.9, 1.0])
def test_the_smoothing_radius_is_where_two_half_spaces_have_lost_their_gap(alpha):
    p, q, sigma = 0.98, 0.01, 0.5
    gap = (1 - alpha) / alpha
    expected = brentq(
        lambda r: norm.cdf(norm.ppf(p) - r / sigma) - norm.cdf(norm.ppf(q) + r / sigma) - gap, 0, 10, xtol=1e-13
    )
    found = float(mixed_smoothing_radius(*torch.tensor([[p], [q]], dtype=torch.float64), alpha, sigma))
    assert found == pytest.approx(expected, abs=1e-10)
    published = published_radius(p, q, alpha, sigma)
    assert found == pytest.approx(published) if alpha == 1 else found > 1.2 * published


def test_it_is_never_below_the_papers_and_grows_with_the_share(generator):
    p = 0.5 + 0.5 * torch.rand(50, generator=generator, dtype=torch.float64)
    q = (1 - p) * torch.rand(50, generator=generator, dtype=torch.float64)
    before = torch.zeros(50, dtype=torch.float64)
    for alpha in (0.4, 0.5, 0.6, 0.8, 0.95, 1.0):
        radius = mixed_smoothing_radius(p, q, alpha, 0.5)
        theirs = [published_radius(float(a), float(b), alpha, 0.5) for a, b in zip(p, q, strict=True)]
        assert bool((radius >= torch.tensor(theirs).double() - 1e-9).all())
        assert bool((radius >= before).all())
        before = radius
    assert_close(before, 0.25 * (torch.special.ndtri(p) - torch.special.ndtri(q)))


def test_no_step_within_the_smoothing_radius_leaves_the_answer_and_one_beyond_it_does():
    """A half-space, smoothed in closed form, in a mixture with a model that is sure of the other class."""
    sigma, alpha, distance = 0.4, 0.7, 0.9
    radius = float(
        mixed_smoothing_radius(torch.tensor([norm.cdf(distance / sigma)], dtype=torch.float64), None, alpha, sigma)
    )

    def answer(moved):
        p = torch.special.ndtr((distance - moved) / sigma)
        return mix_probabilities(torch.tensor([[-1e3, 1e3]]).double(), torch.stack([p, 1 - p])[None].log(), alpha)

    steps = torch.linspace(0, radius, 101, dtype=torch.float64)[:-1]
    assert all(int(answer(step).argmax()) == 0 for step in steps)
    assert int(answer(torch.tensor(radius + 1e-6).double()).argmax()) == 1
    assert radius == pytest.approx(distance - sigma * norm.ppf(1 / (2 * alpha)))


def test_mixing_takes_the_same_part_of_every_radius_of_randomized_smoothing(generator):
    model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)  # noqa: E731
    x = torch.tensor([[0.9], [0.6], [0.02]], dtype=torch.float64)
    plain = RandomizedSmoothing(model, 0.5, generator=generator).certify(x, n=2000)
    bound = torch.special.ndtr(plain.radius / 0.5)
    price = 0.5 * norm.ppf(1 / 1.6)
    assert_close(mixed_smoothing_radius(bound, None, 0.8, 0.5), (plain.radius - price).clamp(min=0))


def test_half_of_the_published_lipschitz_constant_is_enough_and_reached():
    """Of a smoothed half-space, the steepest function there is, at its boundary."""
    sigma, step = 0.3, 1e-5
    slope = (norm.cdf(step / sigma) - norm.cdf(-step / sigma)) / (2 * step)
    assert slope == pytest.approx(1 / (sigma * math.sqrt(2 * math.pi)), rel=1e-6)
    assert slope == pytest.approx(math.sqrt(2 / math.pi) / sigma / 2, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.49999])
def test_below_one_half_nothing_is_certified(alpha):
    p = torch.tensor([1.0, 0.99], dtype=torch.float64)
    assert bool((mixed_smoothing_radius(p, None, alpha, 1.0) == 0).all())
    assert bool((mixed_lipschitz_radius(torch.stack([p, 1 - p], dim=1), alpha, 1.0) == 0).all())


def test_probabilities_that_are_certain_are_certified_everywhere_and_those_that_are_not_nowhere():
    p, q = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([0.0, 1.0, 1.0, 0.5])
    for alpha in (0.7, 1.0):
        assert mixed_smoothing_radius(p, q, alpha, 1.0).tolist() == [torch.inf, 0.0, 0.0, 0.0]


def test_the_mixture_saves_its_share_and_trains_what_is_not_frozen():
    mixed = MixedClassifier(nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False), torch.tensor(0.8))
    assert mixed.state_dict()["alpha"] == torch.tensor(0.8)
    mixed(torch.ones(4, 3))[:, 0].mean().backward()
    assert mixed.standard.weight.grad.abs().sum() > 0
    assert mixed.robust.weight.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixedClassifier(3, nn.Identity()), "standard"),
        (lambda: MixedClassifier(nn.Identity(), None), "robust"),
        (lambda: MixedClassifier(nn.Identity(), nn.Identity(), 1.1), "alpha"),
        (lambda: MixedClassifier(nn.Identity(), nn.Identity(), rob_scale=0.0), "rob_scale"),
        (lambda: MixedClassifier(nn.Identity(), nn.Linear(3, 2))(torch.ones(4, 3)), "robust.s logits must have"),
        (lambda: mix_probabilities(torch.ones(3), torch.ones(3)), "logits_std"),
        (lambda: mix_probabilities(torch.ones(3, 2), torch.ones(3, 2), torch.ones(2)), "alpha"),
        (lambda: mix_probabilities(torch.ones(3, 2), torch.ones(3, 2), torch.full((3,), 2.0)), "alpha"),
        (lambda: mixed_lipschitz_radius(torch.ones(3), 0.7, 1.0), "probabilities must have shape"),
        (lambda: mixed_lipschitz_radius(torch.full((1, 2), 1.5), 0.7, 1.0), "probabilities must be"),
        (lambda: mixed_lipschitz_radius(torch.full((1, 2), 0.5), 0.7, 0.0), "lipschitz"),
        (lambda: mixed_smoothing_radius(torch.tensor([2.0]), None, 0.7, 1.0), "p_first"),
        (lambda: mixed_smoothing_radius(torch.tensor([0.9]), torch.tensor([0.1, 0.1]), 0.7, 1.0), "p_second"),
        (lambda: mixed_smoothing_radius(torch.tensor([0.9]), None, 0.7, 0.0), "sigma"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_model_that_gives_no_logits_is_named():
    flat = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"robust must give logits .* it gave \(4,\)"):
        MixedClassifier(nn.Linear(3, 2), flat)(torch.ones(4, 3))
