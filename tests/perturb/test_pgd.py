import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.testing import assert_close

from lossworks.perturb import FGSM, PGD
from lossworks.perturb.ball import Ball

NORMS = ("linf", "l2")


def linear(weight):
    return lambda x: x.flatten(1) @ weight


def wavy(x):
    """A risk with many local maxima."""
    return (3 * x).sin().sum(1) + (x * x.roll(1, 1)).sum(1)


def length(change, norm):
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_stays_in_the_ball_exactly(norm, dtype, size, generator):
    x = (size * torch.randn(50, 7, generator=generator)).to(dtype)
    for eps in (0.0, 0.1, 1 / 3, 7.3):
        for _ in range(3):
            changed = Ball(x, eps, norm).project(x + 2 * eps * torch.randn(50, 7, generator=generator).to(dtype))
            change = changed.double() - x.double()
            assert bool((length(change, norm) <= eps).all())


@pytest.mark.parametrize("norm", NORMS)
def test_reaches_the_edge_of_the_ball(norm, generator):
    x, weight = torch.randn(5, 4, generator=generator), torch.tensor([1.0, -2.0, 0.5, 3.0])
    changed = PGD(0.25, norm=norm)(linear(weight), x)
    assert_close(length(changed - x, norm), torch.full((5,), 0.25), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_stays_in_the_data_range_exactly(norm, generator):
    x = torch.rand(40, 3, 4, 4, generator=generator)
    for attack in (PGD(0.3, norm=norm, bounds=(0, 1)), FGSM(0.3, norm, bounds=(0.0, torch.tensor(1.0)))):
        changed = attack(lambda z: (z - 0.2).abs().flatten(1).sum(1), x)
        assert bool((changed >= 0).all())
        assert bool((changed <= 1).all())
        assert bool((length(changed.double() - x.double(), norm) <= 0.3).all())


@pytest.mark.parametrize("norm", NORMS)
def test_equals_the_dual_norm_for_a_linear_risk(norm, generator):
    weight = torch.randn(6, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    gain = linear(weight)(PGD(0.2, norm=norm, random_start=False)(linear(weight), x)) - linear(weight)(x)
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    assert_close(gain, (0.2 * dual).expand(3), rtol=1e-5, atol=0)


def test_finds_what_a_solver_with_many_starts_finds(generator):
    x, eps = torch.randn(4, 2, generator=generator, dtype=torch.float64), 1.5
    found = wavy(PGD(eps, steps=60, step_size=0.1, restarts=20, generator=generator)(wavy, x))
    for row in range(4):
        low, high = (x[row] - eps).numpy(), (x[row] + eps).numpy()
        starts = torch.rand(40, 2, generator=generator, dtype=torch.float64).numpy() * (high - low) + low
        best = max(
            -minimize(
                lambda z: -float(wavy(torch.from_numpy(z)[None])), z, bounds=list(zip(low, high, strict=True))
            ).fun
            for z in starts
        )
        assert found[row] >= best - 2e-2


@pytest.mark.parametrize("attack", [FGSM(2.0), PGD(2.0, steps=3), PGD(2.0, steps=2, restarts=3, norm="l2")])
def test_is_never_worse_for_the_attacker_than_the_clean_input(attack, generator):
    x = torch.randn(200, 5, generator=generator)
    assert bool((wavy(attack(wavy, x)) >= wavy(x)).all())


def test_more_restarts_never_find_less(generator):
    x = torch.randn(50, 5, generator=generator)
    risks = []
    for restarts in (1, 2, 5):
        attack = PGD(2.0, steps=3, restarts=restarts, generator=torch.Generator().manual_seed(3))
        risks.append(wavy(attack(wavy, x)))
    assert bool((risks[1] >= risks[0]).all())
    assert bool((risks[2] >= risks[1]).all())


def test_fgsm_is_one_step_along_the_sign(generator):
    x, weight = torch.randn(3, 4, generator=generator), torch.tensor([1.0, -2.0, 0.0, 3.0])
    assert_close(FGSM(0.5)(linear(weight), x), x + 0.5 * weight.sign())


def test_a_risk_that_is_nan_beyond_the_clean_input_leaves_the_clean_input():
    x = torch.ones(3, 2)
    changed = PGD(0.5)(lambda z: torch.where((z == x).all(1), z.sum(1), torch.nan), x)
    assert_close(changed, x, rtol=0, atol=0)


def test_starts_uniformly_in_the_l2_ball():
    ball = Ball(torch.zeros(20_000, 3), 2.0, "l2")
    radii = length(ball.start(torch.Generator().manual_seed(0)), "l2")
    assert_close((radii < 1).double().mean(), torch.tensor(1 / 8, dtype=torch.float64), atol=0.01, rtol=0)


def test_costs_the_passes_it_says():
    calls = {"forward": 0, "backward": 0}

    def counted(x):
        calls["forward"] += 1
        if x.requires_grad:
            x.register_hook(lambda _: calls.__setitem__("backward", calls["backward"] + 1))
        return (x**2).sum(1)

    PGD(0.1, steps=10)(counted, torch.ones(2, 3))
    assert calls == {"forward": 12, "backward": 10}


@pytest.mark.parametrize("norm", NORMS)
def test_stacked_models_are_attacked_as_each_alone(norm, generator):
    weights = torch.randn(3, 4, 5, generator=generator)
    x = torch.randn(3, 6, 4, generator=generator)
    attack = PGD(0.3, steps=4, norm=norm, random_start=False)

    def attacked(weight, rows):
        return attack(lambda z: (z @ weight).logsumexp(1), rows)

    parameters = weights.requires_grad_()
    together = torch.func.vmap(attacked)(parameters, x)
    assert not together.requires_grad
    assert_close(together, torch.stack([attacked(weights[r], x[r]) for r in range(3)]))


def test_stacked_random_starts_differ():
    attack = PGD(1.0, steps=1, step_size=1e-6)
    stacked = torch.func.vmap(lambda x: attack(lambda z: z.abs().sum(1), x), randomness="different")
    together = stacked(torch.zeros(2, 1, 50))
    assert not torch.equal(together[0], together[1])


def test_leaves_parameters_without_gradients():
    model = nn.Linear(4, 2)
    changed = PGD(0.1)(lambda z: model(z).sum(1), torch.ones(2, 4))
    assert model.weight.grad is None
    assert not changed.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(-0.1), "eps must be finite and >= 0"),
        (lambda: PGD(0.1, steps=0), "steps"),
        (lambda: PGD(0.1, step_size=0.0), "step_size"),
        (lambda: PGD(0.1, norm="l1"), "norm must be one of 'linf', 'l2'"),
        (lambda: PGD(0.1, restarts=2, random_start=False), "restarts must be 1 without random_start"),
        (lambda: PGD(0.1, bounds=(1, 0)), "low <= high"),
        (lambda: PGD(0.1, bounds=(0,)), "bounds must be a pair"),
        (lambda: PGD(0.1, bounds=(0, 1))(wavy, torch.tensor([[0.5], [1.5]])), "row 1"),
        (lambda: PGD(0.1)(lambda z: z.sum(), torch.zeros(2, 3)), "risk must give one number a row"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integer_inputs_are_refused():
    with pytest.raises(TypeError, match=r"x must be floating-point, got torch\.int64"):
        PGD(0.1)(wavy, torch.ones(2, 3, dtype=torch.int64))


def test_bounds_that_are_no_numbers_are_named():
    with pytest.raises(TypeError, match="generator"):
        PGD(0.1, generator=False)
    with pytest.raises(ValueError, match=r"x must have shape \(n, ...\), got \(\)"):
        PGD(0.1)(lambda x: x, torch.tensor(1.0))
    with pytest.raises(ValueError, match="x must lie within bounds before it is changed, row 1 does not"):
        PGD(0.1, bounds=(0.0, 1.0))(lambda x: x, torch.tensor([0.5, torch.nan]))
    with pytest.raises(TypeError, match="bounds must hold two numbers or tensors, got NoneType"):
        PGD(0.1, bounds=(0.0, None))
