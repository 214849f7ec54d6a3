"""FSDP2 with a fused loss and DRO weights
=======================================

Train a small transformer with FSDP2, a fused loss and DRO weights, and resume it in the middle without any loss. ::

    python examples/fsdp_fused_dro.py

Two processes (gloo, CPU) share the model and each batch, in unequal parts. The loss is fused with the output layer, so
the logit matrix is never stored. The weights are those of the KL-robust risk over the tokens of both processes. Three
trainings are compared: one that is never stopped; one that two new processes resume in the middle from a checkpoint,
which holds only safetensors and nothing pickled; and one of a single process without FSDP, on whole batches. They run
in float64, because two processes add numbers in another order than one does. In float64 the difference in rounding
stays small; in float32 Adam would make a visible difference of it.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lossworks as lw
from lossworks.roles import weighted_reduction

VOCABULARY, WIDTH, LAYERS, LENGTH, SEQUENCES = 128, 32, 2, 24, 7  # one process gets four sequences, the other three


class LanguageModel(nn.Module):
    """A causal transformer whose forward pass returns the loss, because FSDP gathers the output weight there."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) / 10)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.head = nn.Parameter(torch.randn(VOCABULARY, WIDTH) / WIDTH**0.5)

    def forward(self, tokens: Tensor, objective: lw.Objective, process_group: dist.ProcessGroup | None) -> Tensor:
        hidden = self.tokens(tokens) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=tokens.device)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        hidden, target = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        losses = lw.fused.linear_loss(hidden, self.head, target, objective.loss, reduction="none")
        weights = objective.weigh(losses, target=target, process_group=process_group)
        return weighted_reduction(losses * weights, None, "mean", process_group=process_group)


def batch(step: int) -> Tensor:
    """Return seven sequences: six count up by one and one counts down by three; some tokens are drawn at random."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (SEQUENCES, 1), generator=generator)
    stride = torch.where(torch.arange(SEQUENCES) % 4 == 3, -3, 1)[:, None]
    tokens = (start + stride * torch.arange(LENGTH)) % VOCABULARY
    drawn = torch.rand(tokens.shape, generator=generator) < 0.05
    return torch.where(drawn, torch.randint(VOCABULARY, tokens.shape, generator=generator), tokens)


FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # keys by parameter name, whatever the shards


def tensors(model_state: dict, optimizer_state: dict) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint holds; the optimizer's settings are not saved, as the code sets them."""
    named = {f"model.{name}": value for name, value in model_state.items()}
    return named | {f"optimizer.{name}": value for name, value in optimizer_state.items() if torch.is_tensor(value)}


def save(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the shards of this process."""
    held = tensors(get_model_state_dict(model), get_optimizer_state_dict(model, optimizer, options=FLAT))
    dcp.save(held, storage_writer=dcp.HuggingFaceStorageWriter(str(checkpoint), save_distributed=True))


def load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read the shards of this process into its model and optimizer."""
    model_state = get_model_state_dict(model)
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=FLAT)
    dcp.load(tensors(model_state, optimizer_state), storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint)))
    set_model_state_dict(model, model_state)
    set_optimizer_state_dict(model, optimizer, optimizer_state, options=FLAT)


def run_rank(rank: int, ranks: int, folder: Path, first: int, last: int, save_at: int | None, name: str) -> None:
    """Run one process of a training."""
    dist.init_process_group("gloo", init_method=f"file://{folder / name}.store", rank=rank, world_size=ranks)
    train(rank, ranks, folder, first, last, save_at, name)
    dist.destroy_process_group()
    # torch's cache of sharded operators keeps the group's threads alive, and an interpreter that shuts down while they
    # run may abort, although all work is done. So the process ends without that shutdown.
    os._exit(0)


def train(rank: int, ranks: int, folder: Path, first: int, last: int, save_at: int | None, name: str) -> None:
    """Take the steps from `first` to `last`; a checkpoint is loaded if `first` is not the beginning."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model, group = LanguageModel(), None
    if ranks > 1:
        group, mesh = dist.group.WORLD, init_device_mesh("cpu", (ranks,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    objective = lw.Objective(lw.losses.CrossEntropyLoss(), lw.weights.KLDRO(temperature=2.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if first > 0:
        load(folder / "checkpoint", model, optimizer)
    for step in range(first, last):
        loss = model(batch(step)[rank::ranks], objective, group)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if group is not None:
            dist.all_reduce(loss := loss.detach() / ranks)
        if rank == 0 and step in (first, last - 1):
            print(f"{name}: step {step}, robust loss {loss.item():.6f}", flush=True)
        if step + 1 == save_at:
            save(folder / "checkpoint", model, optimizer)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        save_file({key: value.contiguous() for key, value in whole.items()}, folder / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="steps of each training")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as made:
        folder, middle = Path(made), steps // 2
        mp.spawn(run_rank, (2, folder, 0, steps, middle, "uninterrupted"), nprocs=2)
        mp.spawn(run_rank, (2, folder, middle, steps, None, "resumed"), nprocs=2)
        train(0, 1, folder, 0, steps, None, "one process")
        runs = ("uninterrupted", "resumed", "one process")
        never, resumed, alone = (load_file(folder / f"{name}.safetensors") for name in runs)
        print("checkpoint:", *sorted({path.suffix for path in (folder / "checkpoint").rglob("*") if path.is_file()}))
    same = all(torch.equal(never[name], resumed[name]) for name in never)
    apart = max(float((never[name] - alone[name]).abs().max()) for name in never)
    print(f"resumed = uninterrupted, bit for bit: {same}")
    print(f"two processes against one, largest difference of a parameter: {apart:.1e}")
    if not same or apart > 1e-7:
        raise SystemExit("the trainings differ")


if __name__ == "__main__":
    main()
