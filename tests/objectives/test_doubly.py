import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks import Objective
from lossworks.losses import AdaptiveLDRLoss, CrossEntropyLoss, EnsLoss, LDRLoss, MarginControlLoss, SquaredLoss
from lossworks.objectives import DoublyRobustATObjective
from lossworks.perturb import FGSM, PGD, GaussianNoise
from lossworks.weights import KLDRO, CompositionalEMA


@pytest.fixture
def batch(generator):
    return torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)


def test_it_is_the_attack_and_the_weights_together(batch):
    x, target = batch
    model = nn.Linear(4, 3)
    composed = Objective(CrossEntropyLoss(), KLDRO(temperature=0.5), FGSM(0.2))
    assert_close(
        DoublyRobustATObjective(CrossEntropyLoss(), FGSM(0.2), 0.5)(model, x, target), composed(model, x, target)
    )


def test_a_large_price_is_plain_adversarial_training(batch):
    x, target = batch
    model = nn.Linear(4, 3)
    plain = Objective(CrossEntropyLoss(), perturb=FGSM(0.2))(model, x, target)
    assert_close(DoublyRobustATObjective(CrossEntropyLoss(), FGSM(0.2), 1e6)(model, x, target), plain)


def test_the_attack_follows_its_own_loss(batch):
    x, target = batch
    model, attack = nn.Linear(4, 3), PGD(0.5, random_start=False)
    other = LDRLoss(lam=10.0, reduction="none")
    changed = attack(lambda z: other(model(z), target), x)
    value = DoublyRobustATObjective(CrossEntropyLoss(), attack, attack_loss=LDRLoss(lam=10.0))(model, x, target)
    assert_close(value, Objective(CrossEntropyLoss(), KLDRO(temperature=1.0)).risk(model(changed), target))


def test_momentum_remembers_the_normaliser():
    assert isinstance(DoublyRobustATObjective(CrossEntropyLoss(), FGSM(), momentum=0.5).weights, CompositionalEMA)


def test_the_implicit_gradient_is_the_derivative_through_the_attacks_answer():
    """A loss whose attack has its answer in closed form: max over d of c d f'(x) - d^2 lam / 2 is d = c w / lam."""
    lam, x, target = 4.0, torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)

    class Linear(SquaredLoss):
        """The attack's own loss, linear in the output."""

        def per_sample(self, output, target):
            return 0.7 * output

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def forward(self, inputs):
            return (self.w * inputs).squeeze(1)

    model = Scale()
    attack = PGD(10.0)
    attack.forward = lambda risk, inputs: (inputs + 0.7 * model.w / lam).detach()
    objective = DoublyRobustATObjective(
        SquaredLoss(), attack, attack_loss=Linear(), implicit=True, barrier=0.0, curvature=lam
    )
    objective(model, x, target).backward()

    def total(w):
        return float(SquaredLoss()(torch.tensor([w * (0.3 + 0.7 * w / lam)], dtype=torch.float64), target))

    wanted = (total(1.3 + 1e-6) - total(1.3 - 1e-6)) / 2e-6
    assert model.w.grad.item() == pytest.approx(wanted, rel=1e-7)


def test_inside_its_box_the_barrier_stiffens_the_answer_by_the_distance_to_each_wall():
    """The attack's answer is the maximum of slope d - curvature d^2 / 2 + barrier (log to the one wall + to the other).

    Its derivative by the weight is one over the stiffness: the curvature, and the barrier over both squared distances.
    """
    barrier, curvature, eps, moved, w = 0.05, 2.0, 0.5, 0.3, 1.3
    x, target = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

        def forward(self, inputs):
            return (self.w * inputs).squeeze(1)

    model, attack = Scale(), PGD(eps, bounds=(-0.1, 2.0))
    attack.forward = lambda risk, inputs: inputs + moved
    DoublyRobustATObjective(SquaredLoss(), attack, implicit=True, barrier=barrier, curvature=curvature)(
        model, x, target
    ).backward()
    at, to_low, to_high = 0.3 + moved, 0.3 + moved + 0.1, eps - moved  # the range's lower end is the nearer wall
    stiffness = curvature + barrier / to_low**2 + barrier / to_high**2
    value = SquaredLoss()(torch.tensor([w * at], dtype=torch.float64), target).item()
    scale = value / (w * at - 1) ** 2  # of the squared residual
    plain, pull = 2 * scale * (w * at - 1) * at, 2 * scale * (w * at - 1) * w
    assert model.w.grad.item() == pytest.approx(plain + pull / stiffness * 2 * scale * (2 * w * at - 1), rel=1e-9)


def test_the_implicit_term_has_no_value_and_none_at_the_wall_of_the_box(batch):
    x, target = batch
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    for implicit in (False, True):
        objective = DoublyRobustATObjective(CrossEntropyLoss(), FGSM(0.2), implicit=implicit, barrier=1.0)
        model.zero_grad()
        value = objective(model, x, target)
        value.backward()
        if not implicit:
            before, gradients = value.item(), [p.grad.clone() for p in model.parameters()]
    assert value.item() == pytest.approx(before)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient)


def test_the_implicit_term_of_a_coupled_loss_is_in_the_gradient_of_a_single_part(batch):
    x, target = (rows.double() if rows.is_floating_point() else rows for rows in batch)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    attack = PGD(0.3, steps=3, random_start=False)
    objective = DoublyRobustATObjective(MarginControlLoss(), attack, implicit=True, barrier=0.0, curvature=0.1)
    plain = DoublyRobustATObjective(MarginControlLoss(), attack)
    wanted = torch.autograd.grad(objective(model, x, target), list(model.parameters()))
    (value,) = objective.micro_batches(model, [(x, target)])
    assert_close(torch.autograd.grad(value, list(model.parameters())), wanted)
    without = torch.autograd.grad(plain(model, x, target), list(model.parameters()))
    assert (wanted[0] - without[0]).abs().max() > 0.01


def test_looking_for_the_attack_and_its_movement_moves_neither_loss(batch):
    x, target = batch
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    attack = PGD(0.1, steps=3, random_start=False)
    drawn = DoublyRobustATObjective(EnsLoss(resample_lambda_every=2), attack, implicit=True)
    drawn(model, x, (target > 0).float())
    assert drawn.loss.calls == 1
    remembering = DoublyRobustATObjective(CrossEntropyLoss(), attack, attack_loss=AdaptiveLDRLoss(num_samples=12))
    before = remembering.attack_loss.lam.clone()
    remembering(nn.Linear(4, 3), x, target, index=torch.arange(12))
    assert torch.equal(remembering.attack_loss.lam, before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DoublyRobustATObjective(CrossEntropyLoss(), FGSM(), 0.0), ValueError, "r must be finite and > 0"),
        (lambda: DoublyRobustATObjective(CrossEntropyLoss(), FGSM(), curvature=0.0), ValueError, "curvature"),
        (
            lambda: DoublyRobustATObjective(CrossEntropyLoss(), GaussianNoise(), implicit=True),
            TypeError,
            "implicit needs",
        ),
        (lambda: DoublyRobustATObjective(CrossEntropyLoss(), FGSM(), attack_loss=3), TypeError, "attack_loss"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
