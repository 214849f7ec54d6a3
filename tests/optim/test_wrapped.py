"""What stands beside a wrapped optimizer: scalers, sparse tables, half precision, copies, wrappers in wrappers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.testing import assert_close

from lossworks.optim import GSAM, IGNITE, RSGS, SAM, AnnealedGradientNoise

SIZES = torch.tensor([1.0, 4.0, 0.5])


def quadratic(weight):
    return (SIZES * weight * weight).sum() / 2


@pytest.mark.parametrize("order", ["unscale, ascend", "ascend", "ascend, unscale", "unscale, ascend, unscale"])
@pytest.mark.parametrize("wrap", [SAM, GSAM, lambda inner: AnnealedGradientNoise(GSAM(inner), eta=0.0)])
def test_a_scaler_beside_two_passes_changes_nothing(wrap, order):
    plain, scaled = (nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    optimizer, beside = wrap(torch.optim.SGD([plain], lr=0.1)), wrap(torch.optim.SGD([scaled], lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)

    def ascend(wrapper):
        (wrapper.inner if isinstance(wrapper, AnnealedGradientNoise) else wrapper).ascend()

    for _ in range(3):
        quadratic(plain).backward()
        ascend(optimizer)
        quadratic(plain).backward()
        optimizer.step()
        optimizer.zero_grad()
        scaler.scale(quadratic(scaled)).backward()
        if order.startswith("unscale"):
            scaler.unscale_(beside)
        ascend(beside)
        scaler.scale(quadratic(scaled)).backward()
        if order.endswith("unscale"):
            scaler.unscale_(beside)
        scaler.step(beside)
        scaler.update()
        beside.zero_grad()
    assert scaler.get_scale() == 8192.0
    assert_close(scaled, plain)


def test_a_closure_given_to_a_scaler_is_refused():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="takes no closure from a GradScaler"):
        scaler.step(SAM(torch.optim.SGD([weight], lr=0.1)), lambda: None)


def test_an_overflow_moves_nothing_and_the_next_step_is_taken():
    weight = nn.Parameter(torch.ones(2))
    optimizer = SAM(torch.optim.SGD([weight], lr=0.1))
    weight.grad = torch.tensor([torch.inf, 1.0])
    optimizer.ascend()
    assert weight.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("dtype", "weight", "slope", "rho", "adaptive", "moved"),
    [
        (torch.float16, 1.0, 1e-7, 0.5, False, 1.25),
        (torch.float16, 300.0, 300.0, 0.5, True, 375.0),
        (torch.float16, 1.0, 6e4, 0.5, False, 1.25),
        (torch.bfloat16, 1.0, 1e-30, 0.5, False, 1.25),
        (torch.bfloat16, 1.0, 1e38, 0.5, False, 1.25),
        (torch.float32, 1.0, 1e-42, 0.5, False, 1.25),
    ],
)
def test_the_ascent_is_that_of_float64(dtype, weight, slope, rho, adaptive, moved):
    parameter = nn.Parameter(torch.full((4,), weight, dtype=dtype))
    optimizer = SAM(torch.optim.SGD([parameter], lr=0.0), rho=rho, adaptive=adaptive)
    parameter.grad = torch.full_like(parameter, slope)
    optimizer.ascend()
    assert_close(parameter.detach().double(), torch.full((4,), moved, dtype=torch.float64), rtol=1e-2, atol=0)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert parameter.tolist() == [weight] * 4


def test_complex_weights_are_pairs_of_real_ones():
    pair = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))
    both = nn.Parameter(torch.view_as_complex(pair.detach().clone()))
    scales = torch.tensor([[1.0, 4.0], [0.5, 2.0]], dtype=torch.float64)
    for weight in (pair, both):
        optimizer = GSAM(torch.optim.SGD([weight], lr=0.1), rho=0.3, alpha=0.4)

        def closure(weight=weight, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (scales * (torch.view_as_real(weight) if weight.is_complex() else weight).square()).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_close(torch.view_as_real(both.detach()), pair.detach())


def test_the_worst_point_of_what_is_maximised_is_the_lowest():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = SAM(torch.optim.SGD([weight], lr=0.1, maximize=True), rho=0.5)
    (-weight.square().sum() / 2).backward()
    optimizer.ascend()
    assert_close(weight.detach(), torch.tensor([3.3, 4.4]))


@pytest.mark.parametrize("wrap", [SAM, GSAM])
@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.SparseAdam])
def test_rows_that_come_twice_are_added_up_in_a_sparse_table(wrap, inner):
    tables = [nn.Embedding(6, 3, sparse=sparse, dtype=torch.float64) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    optimizers = [wrap(torch.optim.SGD(table.parameters(), lr=0.1), rho=0.5, adaptive=True) for table in tables]
    if inner is torch.optim.SparseAdam:
        optimizers[0] = wrap(inner(list(tables[0].parameters()), lr=0.1, eps=1e-30), rho=0.5, adaptive=True)
        optimizers[1] = wrap(torch.optim.Adam(tables[1].parameters(), lr=0.1, eps=1e-30), rho=0.5, adaptive=True)
    for table, optimizer in zip(tables, optimizers, strict=True):

        def closure(table=table, optimizer=optimizer):
            optimizer.zero_grad()
            loss = table(torch.tensor([0, 2, 2, 5])).pow(3).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_close(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda sgd, model: SAM(SAM(sgd)),
        lambda sgd, model: RSGS(AnnealedGradientNoise(GSAM(sgd))),
        lambda sgd, model: IGNITE(SAM(sgd), model),
        lambda sgd, model: SAM(AnnealedGradientNoise(torch.optim.LBFGS(model.parameters()))),
        lambda sgd, model: AnnealedGradientNoise(RSGS(sgd)),
        lambda sgd, model: AnnealedGradientNoise(torch.optim.SparseAdam(list(model.parameters()))),
    ],
)
def test_what_cannot_be_wrapped_is_refused(make):
    model = nn.Linear(3, 1)
    with pytest.raises(TypeError, match="optimizer must"):
        make(torch.optim.SGD(model.parameters(), lr=0.1), model)


def test_wrappers_in_wrappers_keep_numbers_of_their_own():
    def fresh():
        weight = nn.Parameter(torch.ones(2))
        return SAM(AnnealedGradientNoise(AnnealedGradientNoise(torch.optim.SGD([weight], lr=0.1), eta=0.0), eta=0.0))

    optimizer, other = fresh(), fresh()
    optimizer.inner.steps, optimizer.inner.inner.steps = 3, 5
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    assert (other.inner.steps, other.inner.inner.steps) == (3, 5)


def test_a_copy_of_a_scheduled_wrapper_steps_its_own_weights():
    weight = nn.Parameter(torch.ones(2))
    optimizer = AnnealedGradientNoise(torch.optim.SGD([weight], lr=0.1), eta=0.0)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        other.param_groups[0]["params"][0].grad = torch.ones(2)
        other.step()
        assert_close(other.param_groups[0]["params"][0].detach(), torch.full((2,), 0.9))
    assert weight.tolist() == [1, 1]


def test_asking_for_a_checkpoint_draws_no_noise():
    model = nn.Linear(3, 1)
    optimizer = AnnealedGradientNoise(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    before = torch.get_rng_state()
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert torch.equal(torch.get_rng_state(), before)
    assert optimizer.steps == 0
    assert not any(bool(held["momentum_buffer"].any()) for held in state.values())


def test_weights_on_the_meta_device_are_refused():
    weight = nn.Parameter(torch.ones(2, device="meta"))
    weight.grad = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match="meta device"):
        SAM(torch.optim.SGD([weight], lr=0.1)).ascend()


@pytest.mark.parametrize("sparse", [(False, False), (True, False), (False, True), (True, True)])
def test_the_product_of_two_gradients_does_not_hang_on_which_of_them_is_sparse(sparse):
    from lossworks.optim.sharpness import _product

    table = torch.zeros(5, 2)
    table[1], table[3] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    other = torch.arange(10.0).reshape(5, 2)
    first, second = (rows.to_sparse(1) if given else rows for rows, given in zip((table, other), sparse, strict=True))
    assert float(_product(first, second)) == float((table * other).sum())
