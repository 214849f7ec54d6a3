import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.optim import GSAM, RSGS, SAM, reliable_entropy_mask

A = torch.diag(torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64))


def quadratic():
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    return weight, lambda: weight @ A @ weight / 2


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


@pytest.fixture
def task(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    return model, lambda: cross_entropy(model(x), y)


def test_a_step_on_a_quadratic_is_its_closed_form():
    weight, loss = quadratic()
    start = weight.detach().clone()
    optimizer = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.3)
    optimizer.step(closure_of(optimizer, loss))
    gradient = A @ start
    assert_close(weight.detach(), start - 0.1 * A @ (start + 0.3 * gradient / gradient.norm()))


def test_the_adaptive_ball_is_its_closed_form():
    weight, loss = quadratic()
    start = weight.detach().clone()
    optimizer = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.3, adaptive=True)
    optimizer.step(closure_of(optimizer, loss))
    scaled = start.abs() * (A @ start)
    assert_close(weight.detach(), start - 0.1 * A @ (start + 0.3 * start.abs() * scaled / scaled.norm()))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gsam_on_a_quadratic_is_its_closed_form(alpha):
    weight, loss = quadratic()
    start = weight.detach().clone()
    optimizer = GSAM(torch.optim.SGD([weight], lr=0.1), rho=0.3, alpha=alpha)
    optimizer.step(closure_of(optimizer, loss))
    g = A @ start
    worst = A @ (start + 0.3 * g / g.norm())
    across = g - (g @ worst) / (worst @ worst) * worst
    assert abs(float(across @ worst)) < 1e-12
    assert_close(weight.detach(), start - 0.1 * (worst - alpha * across))


def test_gsam_leaves_a_smaller_gap_than_sam_on_a_quadratic():
    def gap(optimizer_type, **options):
        weight, loss = quadratic()
        optimizer = optimizer_type(torch.optim.SGD([weight], lr=0.05), rho=0.3, **options)
        for _ in range(3):
            optimizer.step(closure_of(optimizer, loss))
        g = A @ weight.detach()
        worst = weight.detach() + 0.3 * g / g.norm()
        return float(worst @ A @ worst / 2 - weight.detach() @ A @ weight.detach() / 2)

    assert gap(GSAM, alpha=0.8) < gap(SAM)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_without_a_radius_it_is_the_plain_optimizer(task, inner):
    model, _ = task
    plain_model = copy.deepcopy(model).double()
    model.double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    optimizer, plain = SAM(inner(model.parameters(), lr=0.01), rho=0.0), inner(plain_model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: cross_entropy(model(x), y)))
        closure_of(plain, lambda: cross_entropy(plain_model(x), y))()
        plain.step()
    for own, other in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_two_ways_to_step_are_one(task):
    model, _ = task
    twin = copy.deepcopy(model)
    by_closure = GSAM(torch.optim.AdamW(model.parameters(), lr=0.01))
    torch.manual_seed(1)
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    by_hand = GSAM(torch.optim.AdamW(twin.parameters(), lr=0.01))
    for _ in range(3):
        by_closure.step(closure_of(by_closure, lambda: cross_entropy(model(x), y)))
        by_hand.zero_grad()
        cross_entropy(twin(x), y).backward()
        by_hand.ascend()
        cross_entropy(twin(x), y).backward()
        by_hand.step()
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_weights_come_back_bit_for_bit_where_the_second_pass_fails(task):
    model, loss = task
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=10.0)
    calls = []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("out of rows")
        return closure_of(optimizer, loss)()

    with pytest.raises(KeyError, match="out of rows"):
        optimizer.step(failing)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.step(closure_of(optimizer, loss))  # and it goes on


def test_batch_statistics_are_those_of_the_first_pass(task):
    model, loss = task
    twin = copy.deepcopy(model)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=5.0, model=model)
    optimizer.step(closure_of(optimizer, loss))
    assert int(model[1].num_batches_tracked) == 1
    without = SAM(torch.optim.SGD(twin.parameters(), lr=0.1), rho=5.0)
    x = torch.randn(12, 5)
    without.step(closure_of(without, lambda: twin(x).square().mean()))
    assert int(twin[1].num_batches_tracked) == 2


def test_micro_batches_add_up_to_the_whole(generator):
    x, y = torch.randn(10, 4, generator=generator, dtype=torch.float64), torch.arange(10) % 2
    model = nn.Linear(4, 2).double()
    twin = copy.deepcopy(model)
    whole, parts = (SAM(torch.optim.SGD(m.parameters(), lr=0.5), rho=0.5) for m in (model, twin))
    whole.step(closure_of(whole, lambda: cross_entropy(model(x), y)))

    def closure():
        parts.zero_grad()
        for rows in (slice(0, 3), slice(3, 10)):
            (cross_entropy(twin(x[rows]), y[rows], reduction="sum") / 10).backward()

    parts.step(closure)
    assert_close(model.weight, twin.weight, rtol=1e-12, atol=1e-14)


def test_a_scheduler_sees_the_inner_groups_and_a_resume_goes_on_the_same():
    def start():
        weight, loss = quadratic()
        optimizer = SAM(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
        return weight, loss, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)

    weight, loss, optimizer, scheduler = start()
    for _ in range(3):
        optimizer.step(closure_of(optimizer, loss))
        scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.05
    other, other_loss, second, other_scheduler = start()
    other.data.copy_(weight.data)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_scheduler.load_state_dict(scheduler.state_dict())
    for opt, f, s in ((optimizer, loss, scheduler), (second, other_loss, other_scheduler)):
        for _ in range(3):
            opt.step(closure_of(opt, f))
            s.step()
    assert torch.equal(weight, other)
    second.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0})
    assert [group["lr"] for group in second.inner.param_groups] == [group["lr"] for group in second.param_groups]


def test_a_gradient_of_zero_moves_nothing():
    weight = nn.Parameter(torch.ones(2))
    optimizer = GSAM(torch.optim.SGD([weight], lr=0.1))
    optimizer.step(closure_of(optimizer, lambda: (0 * weight).sum()))
    assert weight.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: SAM(w), "optimizer must be a torch optimizer"),
        (lambda w: SAM(torch.optim.LBFGS([w])), "LBFGS takes several"),
        (lambda w: SAM(torch.optim.SGD([w]), rho=-1), "rho"),
        (lambda w: SAM(torch.optim.SGD([w]), adaptive=1), "adaptive"),
        (lambda w: SAM(torch.optim.SGD([w]), model=1), "model"),
        (lambda w: GSAM(torch.optim.SGD([w]), alpha=-1), "alpha"),
        (lambda w: SAM(torch.optim.SGD([w])).step(), "needs a closure"),
        (lambda w: SAM(torch.optim.SGD([w])).load_state_dict(torch.optim.SGD([w]).state_dict()), "state_dict"),
        (lambda w: RSGS(torch.optim.SGD([w]), e0=0), "e0"),
        (lambda w: RSGS(torch.optim.SGD([w])).step(), "closure"),
        (lambda w: reliable_entropy_mask(torch.ones(3)), "output must have shape"),
        (lambda w: reliable_entropy_mask(torch.ones(3, 2), -1), "e0"),
        (lambda w: reliable_entropy_mask(torch.ones(3, 2), torch.ones(2, 1)), "e0 must be a number or a 0-d tensor"),
        (lambda w: reliable_entropy_mask(torch.ones(3, 2), 10**400), "e0 must be a float or an int of 64 bits"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        make(nn.Parameter(torch.ones(2)))


def test_ascending_twice_is_refused():
    weight, loss = quadratic()
    optimizer = SAM(torch.optim.SGD([weight]))
    loss().backward()
    optimizer.ascend()
    with pytest.raises(RuntimeError, match="has ascended already"):
        optimizer.ascend()
    with pytest.raises(RuntimeError, match="has ascended already"):
        optimizer.step(closure_of(optimizer, loss))


# Entropy on reliable rows


def test_the_mask_is_the_entropys_and_no_shift_moves_it(generator):
    z = 3 * torch.randn(50, 4, generator=generator, dtype=torch.float64)
    mask, entropy = reliable_entropy_mask(z)
    assert_close(entropy, torch.distributions.Categorical(logits=z).entropy())
    assert torch.equal(mask, entropy < 0.4 * torch.tensor(4.0).log())
    assert torch.equal(reliable_entropy_mask(z + 100)[0], mask)
    assert bool(reliable_entropy_mask(z, float("inf"))[0].all())
    assert reliable_entropy_mask(torch.tensor([[0.0, -torch.inf]]))[1].tolist() == [0]


def test_without_ball_and_gap_it_is_masked_entropy_minimisation(generator):
    x = torch.randn(20, 3, generator=generator)
    model = nn.Linear(3, 4)
    twin = copy.deepcopy(model)
    optimizer = RSGS(torch.optim.SGD(model.parameters(), lr=0.5), rho=0.0, alpha=0.0, e0=1.2)
    optimizer.step(lambda: model(x))
    entropy = torch.distributions.Categorical(logits=twin(x)).entropy()
    kept = entropy < 1.2
    entropy[kept].mean().backward()
    assert optimizer.reliable == int(kept.sum())
    assert_close(model.weight, twin.weight - 0.5 * twin.weight.grad)


def test_a_batch_without_a_reliable_row_changes_nothing():
    model = nn.Linear(3, 4)
    before = copy.deepcopy(model.state_dict())
    optimizer = RSGS(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))
    optimizer.step(lambda: model(torch.zeros(5, 3)) * 0)
    assert optimizer.reliable == 0
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
