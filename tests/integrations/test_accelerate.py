"""`backward` of a step in parts, with the real Accelerator, against one process with the whole batch.

The file is also the script that each of two processes runs.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from common import CLASSES, OBJECTIVES, by_hand, flat, network
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.integrations.accelerate import backward, windows

ROWS = 29
# Rows of each micro-batch of each step, a list for each of two processes; one process takes them one after another.
STEPS = [([5, 1, 2], [1, 3, 2]), ([2, 4], [3, 1]), ([1], [4])]


def data(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    return (
        x.to(dtype),
        torch.where(torch.arange(ROWS) % 7 == 3, -100, target),
        torch.rand(ROWS, generator=generator).to(dtype),
    )


def steps() -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Row numbers of each step's micro-batches, of the one and the other process."""
    numbers, start = [], 0
    for sizes in STEPS:
        both = []
        for own in sizes:
            both.append([torch.arange(first, first + size) for first, size in _spans(start, own)])
            start += sum(own)
        numbers.append((both[0], both[1]))
    assert start == ROWS
    return numbers


def _spans(start: int, sizes: list[int]) -> list[tuple[int, int]]:
    return [(start + sum(sizes[:at]), size) for at, size in enumerate(sizes)]


def part(rows: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    x, target, own = data(dtype)
    return {"x": x[rows], "target": target[rows], "index": rows, "sample_weight": own[rows]}


def truth(name: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, list[float]]:
    model = network(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    values = []
    for both in steps():
        batch = part(torch.cat(both[0] + both[1]), dtype)
        value = by_hand(name, model, batch["x"], batch["target"], batch["index"], batch["sample_weight"])
        value.backward()
        values.append(value.item())
        optimizer.step()
        optimizer.zero_grad()
    return flat(model), values


def trained(name: str, accelerator, parts_of, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, list[float]]:
    model = network(dtype)
    objective = OBJECTIVES[name]()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))
    values = []
    for both in steps():
        values.append(backward(accelerator, objective, model, [part(rows, dtype) for rows in parts_of(both)]).item())
        optimizer.step()
        optimizer.zero_grad()
    return flat(model), values


def one_after_another(both):
    return both[0] + both[1]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(name, accumulation):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    assert_close(trained(name, accelerator, one_after_another), truth(name), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_too(name):
    from accelerate import Accelerator

    got = trained(name, Accelerator(cpu=True), one_after_another, torch.float32)
    assert_close(got, truth(name, torch.float32), rtol=0, atol=1e-6)


def test_a_mean_of_means_is_another_gradient():
    from accelerate import Accelerator

    accelerator, model, objective = Accelerator(cpu=True), network(), OBJECTIVES["plain"]()
    model = accelerator.prepare(model)
    parts = [part(rows, torch.float64) for rows in one_after_another(steps()[0])]
    backward(accelerator, objective, model, parts)
    exact = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    for batch in parts:
        accelerator.backward(objective(model, **batch) / len(parts))
    assert (torch.cat([p.grad.flatten() for p in model.parameters()]) - exact).abs().max() > 1e-2


def test_a_prepared_loader_goes_by_windows():
    from accelerate import Accelerator

    accelerator, objective = Accelerator(cpu=True), OBJECTIVES["plain"]()
    x, target, _ = data(torch.float64)
    rows = list(zip(x, target, strict=True))
    model = network()
    loader, model, optimizer = accelerator.prepare(
        torch.utils.data.DataLoader(rows, batch_size=2), model, torch.optim.SGD(model.parameters(), lr=0.5)
    )
    other, sizes = network(), []
    for start, parts in enumerate(windows(loader, 4)):
        backward(accelerator, objective, model, parts)
        optimizer.step()
        optimizer.zero_grad()
        sizes.append(sum(len(batch) for batch, _ in parts))
        window = slice(8 * start, 8 * start + 8)
        gradients = torch.autograd.grad(F.cross_entropy(other(x[window]), target[window]), list(other.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(other.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    assert sizes == [8, 8, 8, 5]
    assert_close(flat(model), flat(other), rtol=0, atol=1e-9)


def test_bad_calls_name_what_is_wrong():
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), network()
    with pytest.raises(ValueError, match=r"parts must hold at least one micro-batch.*got none"):
        backward(accelerator, OBJECTIVES["plain"](), model, [])
    with pytest.raises(TypeError, match="objective must be an Objective, got CrossEntropyLoss"):
        backward(accelerator, OBJECTIVES["plain"]().loss, model, [part(torch.arange(2), torch.float64)])


def test_windows_need_a_size():
    with pytest.raises(ValueError, match="size"):
        list(windows([1], 0))


@pytest.fixture(scope="module")
def by_two_processes(tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name][0], second[name][0]) and first[name][1] == second[name][1] for name in first)
    return first


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_step_as_one(name, by_two_processes):
    assert_close(by_two_processes[name], truth(name), rtol=0, atol=1e-9)


def test_each_step_sent_its_gradients_once(by_two_processes):
    assert by_two_processes["reductions"][1] == [1.0] * len(STEPS)


def run_one_rank(folder: Path) -> None:
    from accelerate import Accelerator

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    done = {name: trained(name, Accelerator(cpu=True), lambda both: both[rank]) for name in OBJECTIVES}

    accelerator, objective = Accelerator(cpu=True), OBJECTIVES["coupled"]()
    model, sent = accelerator.prepare(network()), []

    def count(state, bucket):
        sent.append(1.0)
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, count)
    sums = []
    for both in steps():
        sent.clear()
        backward(accelerator, objective, model, [part(rows, torch.float64) for rows in both[rank]])
        sums.append(sum(sent))
    done["reductions"] = (torch.zeros(()), sums)
    torch.save(done, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_one_rank(Path(sys.argv[1]))
    os._exit(0)  # not into the threads of a group that something may still hold
