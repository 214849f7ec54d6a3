import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.certify import (
    AdaptiveMixedClassifier,
    MixedClassifier,
    RandomizedSmoothing,
    mix_probabilities,
    mixed_lipschitz_radius,
    mixed_smoothing_radius,
)
from lossworks.certify.smoothing import ABSTAIN
from lossworks.losses import MixingLoss
from lossworks.perturb import PGD


def published_radius(p_first, p_second, alpha, sigma):
    """The paper's closed form."""
    mu = (1 - alpha) / alpha
    return sigma / 2 * max(0.0, norm.ppf(p_first / (1 + mu)) - norm.ppf((p_second + mu) / (1 + mu)))


def check_certificate(mixed, x, lipschitz, generator):
    """No attack changes an answer within its radius, and one far beyond it does."""
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
    check_certificate(mixed, x, lipschitz, generator)


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


class Says(nn.Module):
    """The mixer's number is a column of the input."""

    def forward(self, x):
        return x[:, -1]


def adaptive(low=0.6, high=0.9, *, mixer=None, **settings):
    torch.manual_seed(0)
    standard, robust = nn.Linear(5, 3), nn.Linear(5, 3)
    return AdaptiveMixedClassifier(standard, robust, mixer or nn.Linear(5, 1), low, high, **settings).double()


def test_in_training_gamma_is_cut_off_and_normalised_as_spelled_out(generator):
    mixed = adaptive(std_scale=2.0, rob_scale=0.5, clip=0.8, momentum=0.25)
    mean, var = 0.0, 1.0
    for scale in (1.0, 3.0):
        x = scale * torch.randn(9, 5, generator=generator, dtype=torch.float64)
        found = mixed.mix(x)
        raw = mixed.mixer(x).detach().numpy()[:, 0]
        reach = 0.8 * raw.std(ddof=1)
        cut = np.minimum(np.maximum(raw, raw.mean() - reach), raw.mean() + reach)
        assert 0 < (cut != raw).mean() < 1
        gamma = (cut - cut.mean()) / np.sqrt(cut.var() + 1e-5)
        alpha = 1 / (1 + np.exp(-gamma))[:, None]
        g, h = (2 * mixed.standard(x)).softmax(1), (0.5 * mixed.robust(x)).softmax(1)
        assert_close(found.gamma.detach(), torch.from_numpy(gamma))
        expected = (1 - alpha) * g.detach().numpy() + alpha * h.detach().numpy()
        assert_close(found.log_probabilities.detach().exp(), torch.from_numpy(expected))
        mean, var = 0.75 * mean + 0.25 * cut.mean(), 0.75 * var + 0.25 * cut.var(ddof=1)
        assert float(mixed.norm.running_mean) == pytest.approx(mean)
        assert float(mixed.norm.running_var) == pytest.approx(var)
    alpha = 0.6 + 0.3 / (1 + np.exp(-(raw - mean) / np.sqrt(var + 1e-5)))[:, None]
    expected = (1 - alpha) * g.detach().numpy() + alpha * h.detach().numpy()
    assert_close(mixed.eval()(x).detach().exp(), torch.from_numpy(expected))


def test_in_evaluation_no_number_of_the_mixer_leaves_the_range(generator):
    mixed = adaptive(mixer=Says()).eval()
    for model in (mixed.standard, mixed.robust):
        model.weight.data[:, -1] = 0
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    x[:, -1] = torch.tensor([-1e300, -1e3, -1.0, 0.0, 1.0, 1e3, 1e300], dtype=torch.float64)
    g, h = mixed.standard(x).softmax(1), mixed.robust(x).softmax(1)
    share = ((mixed(x).exp() - g) / (h - g)).detach()
    assert_close(share, share[:, :1].expand(-1, 3))
    share = share[:, 0]
    assert_close(share[[0, 3, 6]], torch.tensor([0.6, 0.75, 0.9], dtype=torch.float64))
    assert (share.diff() >= -1e-12).all()
    assert torch.equal(mixed.norm.running_mean, torch.zeros(1, dtype=torch.float64))


def test_with_a_range_of_one_share_it_is_the_mixture_with_that_share(generator):
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mixed = adaptive(0.7, 0.7, rob_scale=3.0).eval()
    fixed = MixedClassifier(mixed.standard, mixed.robust, 0.7, rob_scale=3.0)
    assert_close(mixed(x), fixed(x))
    for one, other in zip(mixed.certify(x, 0.1), fixed.certify(x, 0.1), strict=True):
        assert_close(one, other)


def test_in_evaluation_each_row_stands_alone_and_in_training_it_does_not(generator):
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mixed = adaptive()
    assert not torch.allclose(mixed(x)[:3], mixed(x[:3]))
    mixed.eval()
    assert_close(torch.cat([mixed(row[None]) for row in x]), mixed(x))


@pytest.mark.parametrize("low", [0.5, 0.65, 0.9])
def test_a_robust_model_that_is_sure_enough_for_the_least_share_is_sure_enough_for_every_other(low, generator):
    h = 3 * torch.randn(400, 4, generator=generator, dtype=torch.float64)
    top = h.softmax(dim=1).topk(2, dim=1)
    certified = mixed_lipschitz_radius(h.softmax(dim=1), low, 1.0) > 0
    kept = torch.ones(400, dtype=torch.bool)
    for rival in range(4):
        g = torch.full_like(h, -1e3)
        g[:, rival] = 1e3
        for share in torch.linspace(low, 1, 7).tolist():
            answers = mix_probabilities(g, h, share).argmax(dim=1) == top.indices[:, 0]
            assert bool(answers[certified].all())
            kept &= answers
    assert torch.equal(kept, certified)


class Falls(nn.Module):
    """Asks the robust model at one place, and the other one as much as it may elsewhere."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def forward(self, x):
        return torch.where(x == self.start, 1e6, -1e6)


def test_on_the_line_an_adaptive_answer_changes_at_the_radius_of_the_least_share_and_no_further():
    slope, low, high, start = 0.2, 0.8, 0.95, 2.0
    mixed = AdaptiveMixedClassifier(Against(), Ramp(slope), Falls(start), low, high).eval()
    x = torch.tensor([[start]], dtype=torch.float64)
    answer, radius = (float(part) for part in mixed.certify(x, lipschitz=slope))
    assert answer == 0
    grid = torch.linspace(-0.999, 0.999, 4001, dtype=torch.float64)[:, None]
    assert bool((mixed(x + radius * grid).argmax(dim=1) == 0).all())
    assert int(mixed(x - 1.001 * radius).argmax()) == 1
    by_its_own_share = float(MixedClassifier(Against(), Ramp(slope), high).certify(x, lipschitz=slope).radius)
    assert by_its_own_share > 1.2 * radius
    assert int(mixed(x - 0.999 * by_its_own_share).argmax()) == 1


def test_no_attack_through_the_mixer_succeeds_within_the_radius_of_the_least_share(generator):
    torch.manual_seed(0)
    robust = nn.Linear(6, 3).double()
    lipschitz = math.sqrt(2) / 4 * 4 * float(torch.linalg.matrix_norm(robust.weight.detach(), 2))
    standard = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    mixer = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    for parameter in (*standard.parameters(), *mixer.parameters()):
        parameter.data *= 8
    mixed = AdaptiveMixedClassifier(standard, robust, mixer, 0.75, 0.95, rob_scale=4.0)
    x = 2 * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    mixed(x)
    mixed.eval()
    check_certificate(mixed, x, lipschitz, generator)


def test_both_models_stay_in_evaluation_mode_and_only_the_mixer_changes(generator):
    standard = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    mixed = AdaptiveMixedClassifier(standard, nn.Linear(5, 3), nn.Sequential(nn.Dropout(), nn.Linear(5, 1))).train()
    assert not any(member.training for model in (mixed.standard, mixed.robust) for member in model.modules())
    assert all(member.training for member in (*mixed.mixer.modules(), mixed.norm))
    before = {name: tensor.clone() for name, tensor in mixed.state_dict().items()}
    optimizer = torch.optim.SGD(mixed.mixer.parameters(), lr=1.0)
    mixed(torch.randn(8, 5, generator=generator))[:, 0].mean().backward()
    optimizer.step()
    changed = {name for name, tensor in mixed.state_dict().items() if not torch.equal(tensor, before[name])}
    norm = {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == {"mixer.1.weight", "mixer.1.bias"} | norm
    assert not mixed.eval().mixer.training


def test_the_gradient_goes_through_the_mixer_to_the_input(generator):
    x = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mixed = adaptive(clip=3.0)
    for mode in (True, False):
        mixed.train(mode)
        assert torch.autograd.gradcheck(lambda rows: tuple(mixed.mix(rows)), x)


def trained(group):
    """Two steps of the mixer on rows that this rank has its share of: losses, weights and buffers."""
    mixed = adaptive()
    optimizer = torch.optim.SGD(mixed.mixer.parameters(), lr=0.5)
    loss, values = MixingLoss(), []
    generator = torch.Generator().manual_seed(3)
    for sizes in ((5, 3), (8, 0)):
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        columns = [x, torch.arange(8) % 3, torch.arange(8) % 2]
        if group is not None:
            columns = [column.split(sizes)[dist.get_rank()] for column in columns]
        x, target, attacked = columns
        mixture = mixed.mix(x, process_group=group)
        optimizer.zero_grad()
        value = loss(mixture.log_probabilities, target, mixture.gamma, attacked, process_group=group)
        value.backward()
        values.append(value.detach())
        if group is not None:
            for tensor in (values[-1], *(parameter.grad for parameter in mixed.mixer.parameters())):
                dist.all_reduce(tensor)
                tensor /= dist.get_world_size()
        optimizer.step()
    return torch.stack(values), mixed.state_dict()


def test_over_ranks_the_mixer_trains_as_on_the_whole_batch(two_ranks):
    values, state = trained(None)
    for found, own in two_ranks.call(lambda: trained(dist.group.WORLD)):
        assert_close(found, values)
        assert_close(own, state)


def test_trained_by_the_mixing_loss_it_asks_the_robust_model_where_rows_were_attacked(generator):
    x = torch.randn(64, 5, generator=generator)
    attacked = torch.arange(64) % 2
    x[:, 0] += 2.0 * attacked
    mixed = adaptive().float()
    optimizer = torch.optim.Adam(mixed.mixer.parameters(), lr=0.05)
    loss = MixingLoss()
    for _ in range(60):
        mixture = mixed.mix(x)
        optimizer.zero_grad()
        loss(mixture.log_probabilities, torch.zeros(64, dtype=torch.int64), mixture.gamma, attacked).backward()
        optimizer.step()
    gamma = mixed.eval().mix(x).gamma
    assert float(((gamma > 0) == attacked.bool()).double().mean()) > 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adaptive(-0.1), "alpha_low must be in"),
        (lambda: adaptive(0.7, 1.1), "alpha_high must be in"),
        (lambda: adaptive(0.9, torch.tensor(0.8)), "alpha_low must be at most alpha_high = 0.8, got 0.9"),
        (lambda: adaptive(clip=0.0), "clip"),
        (lambda: adaptive(momentum=0.0), "momentum"),
        (lambda: AdaptiveMixedClassifier(nn.Identity(), nn.Identity(), 3), "mixer must be a module"),
        (lambda: adaptive()(torch.ones(1, 5).double()), "x must have at least 2 rows"),
        (lambda: adaptive(mixer=nn.Identity())(torch.ones(4, 5).double()), "mixer must give one number a row"),
        (lambda: adaptive(mixer=nn.Flatten(0))(torch.ones(4, 5).double()), "mixer must give one number a row"),
        (lambda: adaptive(mixer=Says())(torch.full((4, 5), torch.nan).double()), "mixer must give finite"),
        (lambda: adaptive()(torch.ones(4, 5, dtype=torch.int64)), "x must be floating-point"),
        (lambda: adaptive().certify(torch.ones(4, 5).double(), 0.0), "lipschitz"),
    ],
)
def test_bad_arguments_of_an_adaptive_mixture_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("rows", [2, 4])
def test_shares_of_another_number_of_rows_are_refused(rows):
    with pytest.raises(ValueError, match=rf"alpha must be a number or have shape \(3,\), got \({rows},\)"):
        mix_probabilities(torch.ones(3, 2), torch.ones(3, 2), torch.full((rows,), 0.5))
