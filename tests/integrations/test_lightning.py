"""`step_loss` in the real Trainer against a plain loop over whole batches, in one process and in two.

The file is also the script that each of the two processes runs.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from common import CLASSES, OBJECTIVES, Hard, by_hand, flat, network
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import lossworks as lw
from lossworks.losses import CrossEntropyLoss
from lossworks.roles import Loss, Weighting

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the import of a trainer says is not ours to judge
    from lightning.pytorch import LightningModule, Trainer

    from lossworks.integrations.lightning import ExactAccumulation, step_loss

ROWS, SIZE, ACCUMULATE = 31, 4, 3  # eight batches, the last of three rows; steps of three, three and two

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning"),
]


def rows(dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    ignored = (torch.arange(ROWS) < SIZE) | (torch.arange(ROWS) % 7 < 2)  # the whole first batch among them
    target = torch.where(ignored, -100, target)
    own = torch.rand(ROWS, generator=generator, dtype=torch.float64).to(dtype)
    return list(zip(x, target, torch.arange(ROWS), own, strict=True))


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)


class Classifier(LightningModule):
    """What a user writes."""

    def __init__(self, objective: lw.Objective, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.objective = objective
        self.net = network(dtype)
        self.values: list[float] = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_index):
        x, target, index, own = batch
        value = step_loss(self, self.objective, x, target, index=index, sample_weight=own)
        self.values.append(value.item())
        return value

    def configure_optimizers(self):
        return optimizer_of(self.net)


class Naive(Classifier):
    """The same without knowing of the other batches."""

    def training_step(self, batch, batch_index):
        x, target, index, own = batch
        return self.objective(self, x, target, index=index, sample_weight=own)


class Interleaved(torch.utils.data.Sampler):
    """Of each batch of all processes, the rows that are this process's; the last batches are of unequal sizes."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.batches = [list(range(start, min(start + SIZE, ROWS)))[rank::ranks] for start in range(0, ROWS, SIZE)]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def loader(rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float64) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(rows(dtype), batch_sampler=Interleaved(rank, ranks))


def fit(
    module: LightningModule, folder: Path, *, batches=None, accumulate: int = ACCUMULATE, **settings
) -> torch.Tensor:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **({"callbacks": [ExactAccumulation()], "devices": 1, "gradient_clip_val": 0.5} | settings),
    )
    trainer.fit(module, loader() if batches is None else batches)
    return flat(module.net)


def truth(name: str, *, accumulate: int = ACCUMULATE, dtype: torch.dtype = torch.float64, data=None) -> torch.Tensor:
    net, data, step = network(dtype), data or rows(dtype), SIZE * accumulate
    optimizer = optimizer_of(net)
    for _ in range(2):
        for start in range(0, ROWS, step):
            by_hand(name, net, *map(torch.stack, zip(*data[start : start + step], strict=True))).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return flat(net)


@pytest.mark.parametrize("name", ["plain", "fixed weights", "penalty", "sum, penalty"])
def test_accumulated_steps_are_those_of_whole_batches(name, tmp_path):
    assert_close(fit(Classifier(OBJECTIVES[name]()), tmp_path), truth(name), rtol=0, atol=1e-9)


def test_float32_too(tmp_path):
    got = fit(Classifier(OBJECTIVES["plain"](), torch.float32), tmp_path, batches=loader(dtype=torch.float32))
    assert_close(got, truth("plain", dtype=torch.float32), rtol=0, atol=1e-6)


def test_a_mean_of_means_is_another_training(tmp_path):
    got = fit(Naive(OBJECTIVES["plain"]()), tmp_path, callbacks=[])
    assert (got - truth("plain")).abs().max() > 1e-2


def test_a_schedule_of_accumulation(tmp_path):
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    schedule = GradientAccumulationScheduler({0: 8, 1: 8})
    got = fit(Classifier(OBJECTIVES["plain"]()), tmp_path, accumulate=1, callbacks=[schedule, ExactAccumulation()])
    assert_close(got, truth("plain", accumulate=8), rtol=0, atol=1e-9)


@pytest.mark.parametrize("ignored", [SIZE * ACCUMULATE, SIZE * ACCUMULATE + 2 * SIZE])
def test_penalties_of_steps_and_batches_without_a_row(ignored, tmp_path):
    data = [
        (x, torch.tensor(-100), *rest) if row < ignored else (x, y, *rest) for row, (x, y, *rest) in enumerate(rows())
    ]
    batches = torch.utils.data.DataLoader(data, batch_size=SIZE)
    got = fit(Classifier(OBJECTIVES["penalty"]()), tmp_path, batches=batches)
    assert_close(got, truth("penalty", data=data), rtol=0, atol=1e-9)


class Remembering(Loss):
    """A row counts the more the larger its loss was the last time; of several at once, their mean."""

    needs_index = True
    memories: ClassVar = {"seen": "mean"}

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(5, dtype=torch.float64)

    def per_sample(self, output, target, index):
        losses = F.cross_entropy(output, target, reduction="none")
        before = self.seen[index.clamp(min=0)].clone()
        self.remember("seen", index, losses)
        return (1 + before) * losses


class Repeated(Classifier):
    """Its batches have the same five training rows again and again."""

    def __init__(self) -> None:
        super().__init__(lw.Objective(Remembering()))

    def training_step(self, batch, batch_index):
        x, target, index, own = batch
        return step_loss(self, self.objective, x, target, index=index % 5, sample_weight=own)


def remembering_truth() -> torch.Tensor:
    net, seen = network(), torch.zeros(5, dtype=torch.float64)
    optimizer = optimizer_of(net)
    for _ in range(2):
        for start in range(0, ROWS, SIZE * ACCUMULATE):
            step = rows()[start : start + SIZE * ACCUMULATE]
            x, target, index, own = (torch.stack(column) for column in zip(*step, strict=True))
            kept = target != -100
            losses, index = F.cross_entropy(net(x[kept]), target[kept], reduction="none"), index[kept] % 5
            (own[kept] * (1 + seen[index]) * losses).sum().div(own[kept].sum()).backward()
            for row in set(index.tolist()):
                seen[row] = losses.detach()[index == row].mean()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return flat(net)


def test_rows_that_come_again_in_a_step_are_remembered_as_of_one_batch(tmp_path):
    assert_close(fit(Repeated(), tmp_path), remembering_truth(), rtol=0, atol=1e-9)


def test_a_training_cut_short_leaves_nothing_for_the_next(tmp_path):
    class Failing(Classifier):
        def training_step(self, batch, batch_index):
            if len(self.values) == 2:  # in the middle of a step, after a batch with rows
                raise KeyError("boom")
            return super().training_step(batch, batch_index)

    exact = ExactAccumulation()
    with pytest.raises(KeyError, match="boom"):
        fit(Failing(OBJECTIVES["plain"]()), tmp_path, callbacks=[exact])
    got = fit(Classifier(OBJECTIVES["plain"]()), tmp_path, callbacks=[exact])
    assert_close(got, truth("plain"), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_accumulation_no_callback_is_needed(name, tmp_path):
    got = fit(Classifier(OBJECTIVES[name]()), tmp_path, accumulate=1, callbacks=[])
    assert_close(got, truth(name, accumulate=1), rtol=0, atol=1e-9)


def test_the_values_are_those_of_the_batches_where_they_are_even(tmp_path):
    module = Classifier(OBJECTIVES["plain"]())
    even = torch.utils.data.DataLoader(rows()[4:8] * 4, batch_size=4)
    value = by_hand("plain", network(torch.float64), *next(iter(even))).item()
    fit(module, tmp_path, batches=even, accumulate=2, max_steps=1)
    assert_close(module.values, [value] * 2)


def test_accumulation_without_the_callback_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"accumulate_grad_batches=3 is exact only with .*ExactAccumulation"):
        fit(Classifier(OBJECTIVES["plain"]()), tmp_path, callbacks=[])


def test_coupled_weights_refuse_accumulation(tmp_path):
    with pytest.raises(ValueError, match=r"KLDRO couples the rows of a step.*accumulate_grad_batches=3"):
        fit(Classifier(OBJECTIVES["coupled"]()), tmp_path)


class Kept(Weighting):
    """Weights that stand for the data set, and are read off a memory."""

    over_data_set = True
    memories: ClassVar = {"seen": "mean"}


@pytest.mark.parametrize("weights", [Hard(), Kept()], ids=["Hard", "Kept"])
def test_weights_that_must_be_asked_once_refuse_it_too(weights, tmp_path):
    with pytest.raises(ValueError, match=rf"{type(weights).__name__} couples the rows of a step"):
        fit(Classifier(lw.Objective(CrossEntropyLoss(), weights)), tmp_path)


@pytest.mark.parametrize("accumulate", [1, ACCUMULATE])
def test_losses_that_are_not_reduced_are_refused(accumulate, tmp_path):
    with pytest.raises(ValueError, match=r"reduction='mean' or 'sum' .*got 'none'"):
        fit(Classifier(lw.Objective(CrossEntropyLoss(reduction="none"))), tmp_path, accumulate=accumulate)


def test_no_objective_is_refused(tmp_path):
    with pytest.raises(TypeError, match="objective must be an Objective, got CrossEntropyLoss"):
        fit(Classifier(CrossEntropyLoss()), tmp_path)


def test_a_second_value_of_a_batch_is_refused(tmp_path):
    class Twice(Classifier):
        def training_step(self, batch, batch_index):
            return super().training_step(batch, batch_index) + super().training_step(batch, batch_index)

    with pytest.raises(ValueError, match="step_loss must be called once per batch"):
        fit(Twice(OBJECTIVES["plain"]()), tmp_path)


class WholeSteps(Classifier):
    """The way for coupled weights that the error names: the step's rows in one batch, split by hand."""

    def __init__(self, objective: lw.Objective) -> None:
        super().__init__(objective)
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        x, target, index, own = batch
        parts = [
            {"x": x[some], "target": target[some], "index": index[some], "sample_weight": own[some]}
            for some in torch.arange(len(x)).split(SIZE)
        ]
        for value in self.objective.micro_batches(self, parts):
            self.manual_backward(value)
        self.clip_gradients(optimizer, gradient_clip_val=0.5)
        optimizer.step()


def test_and_the_way_that_it_names_is_exact(tmp_path):
    whole = torch.utils.data.DataLoader(rows(), batch_size=SIZE * ACCUMULATE)
    got = fit(
        WholeSteps(OBJECTIVES["coupled"]()), tmp_path, batches=whole, accumulate=1, callbacks=[], gradient_clip_val=None
    )
    assert_close(got, truth("coupled"), rtol=0, atol=1e-9)


def test_an_evaluation_is_the_mean_of_its_batch(tmp_path):
    class Evaluated(Classifier):
        def validation_step(self, batch, batch_index):
            x, target, index, own = batch
            self.values.append(step_loss(self, self.objective, x, target, index=index, sample_weight=own).item())

    module = Evaluated(OBJECTIVES["plain"]())
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, accumulate_grad_batches=3, default_root_dir=tmp_path
    )
    trainer.validate(module, loader(), verbose=False)
    net = network(torch.float64)
    batches = [by_hand("plain", net, *batch).item() for batch in loader()]
    assert_close(module.values, batches)


DISTRIBUTED = {f"{name} x {accumulate}": (name, accumulate) for name in OBJECTIVES for accumulate in (1, ACCUMULATE)}
DISTRIBUTED.pop(f"coupled x {ACCUMULATE}")


@pytest.fixture(scope="module")
def by_two_processes(tmp_path_factory, run_ranks) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    return first


@pytest.mark.parametrize("case", DISTRIBUTED)
def test_two_processes_step_as_one(case, by_two_processes):
    name, accumulate = DISTRIBUTED[case]
    assert_close(by_two_processes[case], truth(name, accumulate=accumulate), rtol=0, atol=1e-9)


def test_two_processes_remember_as_one(by_two_processes):
    assert_close(by_two_processes["remembering"], remembering_truth(), rtol=0, atol=1e-9)


def test_two_processes_with_their_own_means_are_another_training(by_two_processes):
    assert (by_two_processes["naive"] - truth("plain", accumulate=1)).abs().max() > 1e-2


def run_one_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    batches = loader(int(os.environ["RANK"]), 2)
    both = {"batches": batches, "devices": 2, "strategy": "ddp"}
    done = {
        case: fit(Classifier(OBJECTIVES[name]()), folder, accumulate=accumulate, **both)
        for case, (name, accumulate) in DISTRIBUTED.items()
    }
    done["remembering"] = fit(Repeated(), folder, **both)
    done["naive"] = fit(Naive(OBJECTIVES["plain"]()), folder, accumulate=1, **both)
    torch.save(done, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_one_rank(Path(sys.argv[1]))
    os._exit(0)  # not into the threads of a group that something may still hold
