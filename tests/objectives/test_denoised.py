import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.certify import RandomizedSmoothing
from lossworks.objectives import DenoisedSmoothingObjective


@pytest.fixture
def setting(generator):
    """A denoiser, an encoder, a decoder, a classifier, and rows."""
    torch.manual_seed(0)
    denoiser = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    encoder, decoder = nn.Linear(6, 2).double(), nn.Sequential(nn.Linear(2, 6), nn.Tanh()).double()
    box = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(0.5), nn.Linear(10, 3)).double()
    x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    return denoiser, encoder, decoder, box, x, torch.randint(3, (7,), generator=generator)


def slopes(value, model):
    return torch.autograd.grad(value, list(model.parameters()))


def noisy(x, sigma, seed):
    return x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("coded", [False, True])
def test_is_first_order_training_through_the_classifier_where_steps_are_small(setting, coded):
    denoiser, encoder, decoder, box, x, target = setting
    model = nn.Sequential(denoiser, encoder) if coded else denoiser
    through = nn.Sequential(model, decoder, box) if coded else nn.Sequential(model, box)
    objective = DenoisedSmoothingObjective(
        box, 0.3, decoder if coded else None, method="cge", mu=1e-5, generator=torch.Generator().manual_seed(5)
    )
    box.eval()
    wanted = cross_entropy(through(noisy(x, 0.3, 5)), box(x).argmax(dim=1))
    value = objective(model, x, target)
    assert_close(value, wanted)
    assert_close(slopes(value, model), slopes(wanted, model), atol=1e-8, rtol=1e-6)


def test_labels_take_the_place_of_the_classifiers_answers(setting):
    denoiser, _, _, box, x, target = setting
    target = (box.eval()(x).argmax(dim=1) + 1) % 3
    found = [
        DenoisedSmoothingObjective(box, 0.0, target=what)(denoiser, x, target) for what in ("own_prediction", "labels")
    ]
    logits = box(denoiser(x))
    assert_close(found[0], cross_entropy(logits, box(x).argmax(dim=1)).detach())
    assert_close(found[1], cross_entropy(logits, target).detach())


def test_random_directions_are_off_by_as_much_as_theory_says(setting):
    _, encoder, decoder, box, x, target = setting
    codes = encoder(x).detach().repeat(30, 1).requires_grad_()
    make = partial(DenoisedSmoothingObjective, box, 0.0, decoder, target="labels", mu=1e-5)
    exact, random = (
        torch.autograd.grad(objective(nn.Identity(), codes, target.repeat(30)), codes)[0]
        for objective in (make(method="cge"), make(q=50, generator=torch.Generator().manual_seed(0)))
    )
    error = (random - exact).square().sum(dim=1) / exact.square().sum(dim=1)
    assert float(error.mean()) == pytest.approx((2 - 1) / 50, rel=0.2)


def test_what_is_asked_learns_nothing_and_keeps_its_mode_and_is_no_part_of_the_objective(setting):
    denoiser, encoder, decoder, box, x, target = setting
    box[0].eval()
    objective = DenoisedSmoothingObjective(box, 0.3, decoder)
    before = copy.deepcopy(box.state_dict())
    objective(nn.Sequential(denoiser, encoder), x, target).backward()
    assert all(parameter.grad is None for parameter in (*box.parameters(), *decoder.parameters()))
    assert denoiser[0].weight.grad.abs().sum() > 0
    assert (box[0].training, box[2].training) == (False, True)
    assert_close(box.state_dict(), before, atol=0, rtol=0)
    assert not list(objective.parameters())
    assert not objective.state_dict()


def test_the_classifier_may_leave_torch(setting):
    denoiser, _, _, box, x, target = setting
    weight = box[0].weight.detach()[:3].numpy()

    def remote(rows):
        return torch.from_numpy(rows.numpy() @ weight.T)

    make = partial(DenoisedSmoothingObjective, sigma=0.0, method="cge", mu=1e-5)
    got = slopes(make(remote)(denoiser, x, target), denoiser)
    at_hand = cross_entropy(denoiser(x) @ torch.from_numpy(weight).T, remote(x).argmax(dim=1))
    assert_close(got, slopes(at_hand, denoiser), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("method", "asked"), [("rge", 1 + 4 + 1), ("cge", 1 + 2 * 6 + 1)])
def test_asks_as_often_as_it_says(setting, method, asked):
    denoiser, _, _, box, x, target = setting
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return box(rows)

    DenoisedSmoothingObjective(counted, 0.3, method=method, q=4)(denoiser, x, target)
    assert calls == [7] * asked


def test_noise_is_for_training_alone(setting):
    denoiser, _, _, box, x, target = setting
    resting = DenoisedSmoothingObjective(box, 0.3).eval()
    assert_close(resting(denoiser, x, target), DenoisedSmoothingObjective(box, 0.0)(denoiser, x, target))


def test_ignored_rows_are_left_out(setting):
    denoiser, _, _, box, x, target = setting
    kept = torch.tensor([0, 2, 3, 6])
    marked = torch.full_like(target, -100).index_copy(0, kept, target[kept])
    for what in ("own_prediction", "labels"):
        objective = DenoisedSmoothingObjective(box, 0.0, method="cge", target=what)
        value, alone = objective(denoiser, x, marked), objective(denoiser, x[kept], target[kept])
        assert_close(value, alone)
        assert_close(slopes(value, denoiser), slopes(alone, denoiser))


def test_micro_batches_are_the_whole_batch_where_nothing_is_drawn(setting):
    denoiser, _, _, box, x, target = setting
    objective = DenoisedSmoothingObjective(box, 0.0, method="cge")
    whole = slopes(objective(denoiser, x, target), denoiser)
    for value in objective.micro_batches(denoiser, [(x[:2], target[:2]), (x[2:], target[2:])]):
        value.backward()
    assert_close([parameter.grad for parameter in denoiser.parameters()], list(whole))


def test_autocast_does_not_round_the_differences_away(setting):
    *_, box, x, target = setting
    box, x = box.float(), x.float()
    model = nn.Identity()

    def slope(enabled):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = DenoisedSmoothingObjective(box, 0.0, method="cge")(model, leaf, target)
        return torch.autograd.grad(value, leaf)

    assert_close(slope(True), slope(False))


def test_the_defended_classifier_can_be_certified(setting):
    denoiser, encoder, decoder, box, x, _ = setting
    model = nn.Sequential(denoiser, encoder)
    defended = partial(DenoisedSmoothingObjective(box, 0.3, decoder).logits, model)
    assert_close(defended(x), box.eval()(decoder(model(x))).detach())
    smoothed = RandomizedSmoothing(defended, 0.3, generator=torch.Generator().manual_seed(0))
    assert smoothed.certify(x, n0=5, n=50).answer.shape == (7,)


def test_bad_arguments_are_named(setting):
    denoiser, _, _, box, x, target = setting
    for bad, error, name in (
        ({"black_box": 3}, TypeError, "black_box must be a function"),
        ({"black_box": None}, TypeError, "black_box must be a function"),
        ({"decoder": 3}, TypeError, "decoder must be a function"),
        ({"sigma": -1.0}, ValueError, "sigma"),
        ({"target": "own"}, ValueError, "target must be one of 'own_prediction', 'labels'"),
        ({"method": "fd"}, ValueError, "method"),
        ({"mu": 0.0}, ValueError, "mu"),
        ({"q": 0}, ValueError, "q"),
        ({"generator": 3}, TypeError, "generator"),
    ):
        with pytest.raises(error, match=name):
            DenoisedSmoothingObjective(**{"black_box": box, **bad})
    with pytest.raises(ValueError, match=r"black_box must answer x with logits \(7, C\), it gave \(7,\)"):
        DenoisedSmoothingObjective(lambda rows: rows.sum(1))(denoiser, x, target)
    with pytest.raises(ValueError, match=r"target must be in \[0, 3\)"):
        DenoisedSmoothingObjective(box, target="labels")(denoiser, x, target + 3)
    for what in ("own_prediction", "labels"):
        with pytest.raises(ValueError, match=r"target must have shape \(7,\)"):
            DenoisedSmoothingObjective(box, target=what)(denoiser, x, target[:3])
        with pytest.raises(TypeError, match="target must be int64"):
            DenoisedSmoothingObjective(box, target=what)(denoiser, x, target.int())
