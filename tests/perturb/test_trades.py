import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import CompSumLoss, CrossEntropyLoss, EnsLoss
from lossworks.objectives import SmoothAdversarialCompSumObjective
from lossworks.perturb import FGSM, PGD, TRADES, LargestMarginChange, PricedAscent, cw_margin_loss


@pytest.fixture
def batch(generator):
    return torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))


def attack(**options):
    return PGD(0.3, steps=5, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("part", [TRADES, LargestMarginChange])
def test_a_price_of_0_leaves_the_clean_loss_and_one_below_0_is_refused(part, model, batch):
    model.eval()
    value = Objective(CrossEntropyLoss(), perturb=part(0.0, attack()))(model, *batch)
    assert_close(value, cross_entropy(model(batch[0]), batch[1]))
    with pytest.raises(ValueError, match=r"must be finite and >= 0"):
        part(-0.1, attack())


def test_trades_is_the_clean_loss_plus_beta_times_the_divergence_that_torch_gives(model, batch):
    x, target = batch
    model.eval()
    with torch.no_grad():
        clean = model(x)
    changed = attack()(lambda z: kl_div(model(z).log_softmax(1), clean.softmax(1), reduction="none").sum(1), x)
    divergence = kl_div(model(changed).log_softmax(1), clean.softmax(1), reduction="batchmean")
    value = Objective(CrossEntropyLoss(), perturb=TRADES(2.5, attack()))(model, x, target)
    assert_close(value, cross_entropy(clean, target) + 2.5 * divergence)


@pytest.mark.parametrize("price", [TRADES(0.0, PGD(0.1)), LargestMarginChange(0.0, PGD(0.1)), TRADES(1.0, PGD(0.0))])
def test_no_price_or_no_room_is_the_clean_loss(price, model, batch):
    x, target = batch
    model.eval()
    assert_close(Objective(CrossEntropyLoss(), perturb=price)(model, x, target), cross_entropy(model(x), target))


def test_the_price_has_its_gradient_through_both_outputs(batch):
    x, target = batch
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    objective = Objective(CrossEntropyLoss(), perturb=TRADES(2.0, PGD(0.0)))
    objective.perturb.attack.forward = lambda risk, z: z + 0.2

    def value(w):
        return objective(lambda z: z @ w, x.double(), target)

    assert torch.autograd.gradcheck(value, (weight,))


def test_rows_sample_weights_and_totals_are_those_of_a_loss(model, batch):
    x, target = batch
    model.eval()
    weight = torch.linspace(0, 2, 12)
    each, objective = (
        Objective(CrossEntropyLoss(reduction=how), perturb=TRADES(2.0, PGD(0.1))) for how in ("none", "mean")
    )
    for given in (each, objective):  # a change that a split does not redraw
        given.perturb.attack.forward = lambda risk, z: z + 0.1
    each = each(model, x, target)
    assert_close(objective(model, x, target, sample_weight=weight), (each * weight).sum() / weight.sum())
    parts = [objective(model, x[rows], target[rows], total=12.0) for rows in torch.arange(12).split(5)]
    assert_close(torch.stack(parts).sum(), each.mean())
    micro = objective.micro_batches(model, [(x[rows], target[rows]) for rows in torch.arange(12).split(5)])
    assert_close(sum(value.item() for value in micro), each.mean().item(), atol=1e-5, rtol=0)


def test_an_attack_leaves_mode_buffers_gradients_and_draws_of_the_model_alone(model, batch):
    x, target = batch
    model[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seen = []
    model.register_forward_hook(lambda module, _, __: seen.append(module.training))
    for perturb in (PGD(0.1, steps=2), TRADES(1.0, PGD(0.1, steps=2))):
        objective = Objective(CrossEntropyLoss(), perturb=perturb)
        objective.train()
        seen.clear()
        value = objective(model, x, target)
        assert [module.training for module in model.modules()] == modes
        searching, training = seen.count(False), seen.count(True)
        assert searching >= 4
        assert training == (2 if isinstance(perturb, TRADES) else 1)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert value.requires_grad
    assert int(model[1].num_batches_tracked) == int(before["1.num_batches_tracked"]) + 3


def test_batch_statistics_are_said_and_not_silent(batch):
    x, target = batch
    coupled = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"model: 1 \(BatchNorm1d\) keeps no running statistics"):
        Objective(CrossEntropyLoss(), perturb=PGD(0.1))(coupled, x, target)


def test_a_loss_that_couples_its_batch_has_no_rows_to_price():
    with pytest.raises(TypeError, match="EnsLoss couples the whole batch"):
        Objective(EnsLoss(), perturb=TRADES())


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("rho", [0.7, 2.0])
def test_the_smooth_adversarial_loss_bounds_the_ramps_under_any_change(tau, rho, batch, generator):
    x, target = (batch[0].double(), batch[1])
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    nu = math.sqrt(2) / rho
    found = SmoothAdversarialCompSumObjective(
        tau, rho, nu, PGD(0.3, steps=60, step_size=0.02, restarts=4, generator=generator), reduction="none"
    )(lambda z: z @ weight, x, target)

    def ramps(z):
        logits = z @ weight
        margins = (logits.gather(1, target[:, None]) - logits) / rho
        u = (1 - margins).clamp(0, 1).scatter(1, target[:, None], 0).sum(1)
        return torch.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)

    for _ in range(200):
        changed = x + 0.3 * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
        assert bool((ramps(changed) <= found + 1e-9).all())


def test_the_smooth_adversarial_loss_without_room_is_comp_sum(batch):
    x, target = batch
    weight = torch.randn(4, 3)
    value = SmoothAdversarialCompSumObjective(1.5, 0.5, attack=PGD(0.0))(lambda z: z @ weight, x, target)
    assert_close(value, CompSumLoss(1.5)(x @ weight / 0.5, target))


def test_the_largest_margin_change_is_the_distance_between_margin_vectors(batch, generator):
    _, target = batch
    clean, perturbed = torch.randn(2, 12, 3, generator=generator)
    found = LargestMarginChange(1.0).per_sample(perturbed, clean, target)
    for row in range(12):
        y = int(target[row])
        others = [k for k in range(3) if k != y]
        moved = [(perturbed[row, y] - perturbed[row, k]) - (clean[row, y] - clean[row, k]) for k in others]
        assert_close(found[row].item(), math.hypot(*(float(m) for m in moved)), rtol=1e-5, atol=1e-6)


def test_the_margin_is_the_labels_lead_and_stops_at_the_confidence():
    output = torch.tensor([[2.0, 5.0, 1.0], [4.0, 1.0, 3.5], [0.0, 9.0, 0.0]])
    target = torch.tensor([0, 0, 0])
    assert_close(cw_margin_loss(output, target, confidence=10.0), torch.tensor([-3.0, 0.5, -9.0]))
    assert_close(cw_margin_loss(output, target, confidence=4.0), torch.tensor([-3.0, 0.5, -4.0]))


def test_an_attack_on_the_margin_finds_what_one_on_a_saturated_cross_entropy_misses():
    weight = torch.tensor([[100.0, -100.0]])
    x, target = torch.tensor([[1.0]]), torch.tensor([0])
    on_margin = PGD(1.1, steps=5, random_start=False)(lambda z: -cw_margin_loss(z @ weight, target), x)
    on_entropy = PGD(1.1, steps=5, random_start=False)(lambda z: cross_entropy(z @ weight, target, reduction="none"), x)
    assert float(on_margin) < 0 < float(on_entropy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TRADES(-1.0), "beta"),
        (lambda: LargestMarginChange(-1.0), "nu"),
        (lambda: cw_margin_loss(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)), "two classes"),
        (lambda: cw_margin_loss(torch.ones(2, 3), torch.tensor([0, 3])), "target"),
        (lambda: cw_margin_loss(torch.ones(2, 3), torch.tensor([0, 1]), confidence=-1.0), "confidence"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "attack", [FGSM(0.1), FGSM(0.1, "l2"), PGD(0.1, random_start=False), PricedAscent(1.0)], ids=lambda a: str(a)[:30]
)
@pytest.mark.parametrize("made", [TRADES, LargestMarginChange, SmoothAdversarialCompSumObjective])
def test_an_attack_that_begins_where_the_price_has_no_gradient_is_refused(made, attack):
    with pytest.raises(ValueError, match="attack must not begin at the clean input"):
        made(attack=attack)


def test_a_random_start_gives_the_margins_change_the_price_that_it_has_by_hand():
    # One input of the box's width: the margin 2x moves by at most 2 * 0.5, which a step from any start but x reaches.
    x, target = torch.tensor([[0.3], [-1.0]], dtype=torch.float64), torch.tensor([0, 1])
    weight = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    objective = SmoothAdversarialCompSumObjective(nu=2.0, attack=PGD(0.5, steps=3), reduction="none")
    clean = torch.nn.functional.cross_entropy(x @ weight, target, reduction="none")
    assert_close(objective(lambda z: z @ weight, x, target), clean + 2.0 * 1.0)


def test_an_attack_must_be_a_perturbation():
    with pytest.raises(TypeError, match="attack must be a perturbation"):
        TRADES(attack=TRADES())
