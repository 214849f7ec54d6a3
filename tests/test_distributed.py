"""Rows over ranks: gathers with their gradients, real data-parallel training, and processes that leave none behind."""

import copy
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

import lossworks as lw
from lossworks.distributed import gather_rows, own_rows, row_counts, sum_over_ranks
from lossworks.testing import Ranks

COUNTS = {2: (4, 0), 3: (2, 0, 3)}


def rows_of(rank, counts, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(sum(counts), 3, generator=generator, dtype=torch.float64).to(dtype)
    return whole, whole.split(list(counts))[rank].clone()


def coupled(rows):
    """A number to which every pair of rows adds."""
    return (rows @ rows.T).logsumexp(1).square().sum()


def gathered_gradients():
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    own = rows_of(rank, COUNTS[size])[1].requires_grad_()
    (gradient,) = torch.autograd.grad(coupled(gather_rows(own, group)), own, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), own)
    return gradient.detach(), second


@pytest.mark.parametrize("name", ["two_ranks", "three_ranks"])
def test_gathered_rows_carry_first_and_second_gradients(name, request):
    ranks = request.getfixturevalue(name)
    whole, _ = rows_of(0, COUNTS[ranks.size])
    whole.requires_grad_()
    (gradient,) = torch.autograd.grad(coupled(whole), whole, create_graph=True)
    first, second = zip(*ranks.call(gathered_gradients), strict=True)
    # Every rank computed the same number, and what comes back is the gradient of their sum.
    assert_close(torch.cat(first), ranks.size * gradient.detach())
    wanted = torch.autograd.grad((ranks.size * gradient).square().sum(), whole)[0]
    assert_close(torch.cat(second), wanted)


def gathered_as(dtype):
    rank, group = dist.get_rank(), dist.group.WORLD
    whole = torch.arange(5 * 2).reshape(5, 2).remainder(2 if dtype == torch.bool else 99).to(dtype)
    own = whole[:2] if rank == 0 else whole[2:]
    gathered = gather_rows(own, group)
    counts = row_counts(len(own), group)
    return torch.equal(gathered, whole), gathered.dtype == dtype, torch.equal(own_rows(gathered, group, counts), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool])
def test_rows_of_any_dtype_come_as_they_are(two_ranks, dtype):
    assert two_ranks.call(gathered_as, dtype) == [(True, True, True)] * 2


def gathered_under_vmap():
    rank, group = dist.get_rank(), dist.group.WORLD
    whole = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = [2, 3]
    own = whole.split(sizes, dim=1)[rank]
    together = torch.func.vmap(lambda rows: gather_rows(rows, group, sizes))(own)
    slopes = torch.func.vmap(torch.func.grad(lambda rows: gather_rows(rows, group, sizes).square().sum()))(own)
    return together, slopes, whole, own


def test_gathers_stack(two_ranks):
    for together, slopes, whole, own in two_ranks.call(gathered_under_vmap):
        assert_close(together, whole)
        assert_close(slopes, 2 * 2 * own)


def summed():
    number = torch.tensor(dist.get_rank() + 1.0, requires_grad=True)
    total = sum_over_ranks(number, dist.group.WORLD)
    (gradient,) = torch.autograd.grad(total.square(), number)
    return total.item(), gradient.item()


def test_sums_carry_the_sum_of_gradients(three_ranks):
    assert three_ranks.call(summed) == [(6.0, 36.0)] * 3


def objective_and_model():
    """Everything that could go wrong at once: a coupled weighting, a memory, a penalty."""
    generator = torch.Generator().manual_seed(0)
    objective = lw.Objective(
        lw.losses.AdaptiveLDRLoss(num_samples=16, lam0=1.0),
        lw.weights.KLDRO(temperature=0.5),
        penalties=[lw.penalties.WeightMagnitudePenalty(0.1)],
    )
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return objective, model


def data(step):
    generator = torch.Generator().manual_seed(step)
    index = torch.randint(16, (11,), generator=generator)
    x = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "target": index % 3, "index": index}


def trained_alone(steps=3):
    objective, model = objective_and_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        objective(model, **data(step)).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()], objective.loss.lam


def trained_by(wrapping, micro):
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    objective, model = objective_and_model()
    if wrapping == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sizes = [[7, 4], [0, 11], [5, 6]] if size == 2 else [[4, 4, 3], [11, 0, 0], [0, 5, 6]]
    for step in range(3):
        own = {name: tensor.split(sizes[step])[rank] for name, tensor in data(step).items()}
        optimizer.zero_grad()
        if not micro:
            objective(model, **own, process_group=group).backward()
        else:
            pieces = torch.arange(len(own["x"])).tensor_split(2)
            parts = [{name: tensor[piece] for name, tensor in own.items()} for piece in pieces]
            values = objective.micro_batches(model, parts, process_group=group)
            if wrapping == "ddp":
                with model.no_sync():
                    next(values).backward()
                next(values).backward()
            else:
                for value in values:
                    value.backward()
        optimizer.step()
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach() for p in full], objective.loss.lam


@pytest.mark.parametrize("micro", [False, True], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("wrapping", ["ddp", "fsdp2"])
def test_data_parallel_training_is_that_of_one_process(two_ranks, wrapping, micro):
    weights, memory = trained_alone()
    for trained, remembered in two_ranks.call(trained_by, wrapping, micro):
        assert_close(trained, weights, atol=1e-9, rtol=1e-9)
        assert_close(remembered, memory, atol=0, rtol=0)


def test_three_ranks_of_ddp_are_one_process(three_ranks):
    weights, memory = trained_alone()
    for trained, remembered in three_ranks.call(trained_by, "ddp", False):
        assert_close(trained, weights, atol=1e-9, rtol=1e-9)
        assert_close(remembered, memory, atol=0, rtol=0)


def nothing_anywhere():
    objective, model = objective_and_model()
    objective.penalties = nn.ModuleList()
    value = objective(model, **{n: t[:0] for n, t in data(0).items()}, process_group=dist.group.WORLD)
    value.backward()
    return value.item(), max(float(p.grad.abs().max()) for p in model.parameters())


def test_a_batch_of_no_rows_on_any_rank_is_zero(two_ranks):
    assert two_ranks.call(nothing_anywhere) == [(0.0, 0.0)] * 2


def each_rows_loss(loss):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    target = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    own = slice(0, 2) if dist.get_rank() == 0 else slice(2, 5)
    torch.manual_seed(0)
    return loss(x[own], target[own], process_group=dist.group.WORLD)


@pytest.mark.parametrize("loss", [lw.losses.LogisticLoss(reduction="none"), lw.losses.EnsLoss(reduction="none")])
def test_without_a_reduction_a_rank_gets_its_own_rows(two_ranks, loss):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.manual_seed(0)
    wanted = loss(x, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert_close(torch.cat(two_ranks.call(each_rows_loss, loss)), wanted)


def fails_on(rank):
    if dist.get_rank() == rank:
        raise ValueError("a row too many")
    dist.barrier()


def test_a_failing_rank_is_named_and_ends_the_others():
    with Ranks(2, timeout=30) as ranks:
        workers = list(ranks._workers)
        with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 failed:.*ValueError: a row too many"):
            ranks.call(fails_on, 1)
        assert all(worker.poll() is not None for worker in workers)


def test_a_rank_that_hangs_is_given_up_and_killed():
    with Ranks(1, timeout=0.5) as ranks:
        ranks.call(time.time)
        workers = list(ranks._workers)
        with pytest.raises(TimeoutError, match=r"rank 0 of 1 has not answered in 0.5 s"):
            ranks.call(time.sleep, 60)
        assert all(worker.poll() is not None for worker in workers)


def test_ranks_end_when_their_parent_is_killed():
    code = (
        "import os, time; from lossworks.testing import Ranks; ranks = Ranks(2); "
        "print(*ranks.call(os.getpid), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that nobody waits for has ended all the same.
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_local_functions_are_sent_by_value(two_ranks):
    offset = 3

    def shifted():
        return offset + dist.get_rank()

    assert two_ranks.call(shifted) == [3, 4]


def test_a_number_has_no_rows_to_gather():
    with pytest.raises(ValueError, match="tensor must have rows"):
        gather_rows(torch.tensor(1.0), None)


def test_copies_of_an_objective_keep_their_memories_apart():
    objective, model = objective_and_model()
    other = copy.deepcopy(objective)
    objective(model, **data(0))
    assert not torch.equal(objective.loss.lam, other.loss.lam)
