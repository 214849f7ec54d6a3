"""One rank of ``test_parallel.py``: ``ranks.py RANK RANKS FOLDER`` runs all cases and leaves what they gave there."""

import copy
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import lossworks as lw
from lossworks.catalog import parts
from lossworks.fused.parallel import parallel_linear_loss
from lossworks.roles import Loss
from lossworks.testing import instances

ROWS, FEATURES, CLASSES, CHUNK = 11, 4, 5, 4
SIZES = {2: (2, 3), 3: (2, 0, 3)}
LEAVES = ("hidden", "weight", "bias", "sample_weight")


def losses():
    """Every row-wise loss of the catalog in every setting, by name."""
    for name, entry in parts().items():
        if isinstance(entry.part, type) and issubclass(entry.part, Loss) and entry.part.rowwise:
            for number, loss in enumerate(instances(entry.part)):
                yield f"{name} {number}", loss


def example(loss, dtype=torch.float64, scale=1.0):
    """Hidden rows, a layer of as many outputs as the loss's classes, targets with an ignored row, and weights."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, dtype=torch.float64, generator=generator)
    columns = loss.output_size(CLASSES)
    columns = CLASSES if columns == 1 else columns
    if loss.kind.has_classes:
        target = torch.randint(columns, (ROWS,), generator=generator)
        target[3] = loss.ignore_index
    elif loss.kind.levels(columns):
        target = torch.randint(2, (ROWS, columns), generator=generator).to(torch.float64)
    else:
        shape = (ROWS,) if loss.output_size() > 1 else (ROWS, columns)
        target = loss.kind.example_target(ROWS * columns, columns, torch.float64, generator)
        target = target[: torch.Size(shape).numel()].reshape(shape)
    index = torch.arange(ROWS) if loss.needs_index else None
    none = loss.rows(torch.zeros(0, columns, dtype=torch.float64), target[:0], None if index is None else index[:0])[0]
    shape = (ROWS, *none.shape[1:])
    batch = {
        "hidden": scale * draw(ROWS, FEATURES),
        "weight": draw(columns, FEATURES),
        "bias": draw(columns),
        "sample_weight": draw(shape).abs(),
        "upstream": draw(shape),
    }
    return {name: tensor.to(dtype) for name, tensor in batch.items()}, target, index


def own_classes(columns, rank, ranks):
    """Which classes this rank holds: the last rank has what the others leave."""
    sizes = (*SIZES[ranks][:-1], columns - sum(SIZES[ranks][:-1]))
    begin = sum(sizes[:rank])
    return slice(begin, begin + sizes[rank])


def leave(value, leaves, loss):
    """The value, the gradients, and what the loss remembers."""
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    learned = {f"learned {name}": held.grad for name, held in loss.named_buffers() if held.requires_grad}
    state = {name: held.detach() for name, held in loss.named_buffers()}
    return {"value": value.detach(), **gradients, **learned, **state}


def prepared(loss, dtype, scale, frozen, target, own=slice(None)):
    """The batch as leaves, and a loss whose learned hyperparameters have no gradient yet."""
    batch, usual, index = example(loss, dtype, scale)
    upstream = batch.pop("upstream")
    batch["weight"], batch["bias"] = batch["weight"][own], batch["bias"][own]
    leaves = {name: tensor.clone().requires_grad_(name not in frozen) for name, tensor in batch.items()}
    return leaves, upstream, usual if target is None else target, index, copy.deepcopy(loss)


def on_ranks(rank, ranks, loss, *, reduction="mean", target=None, dtype=torch.float64, scale=1.0, frozen=(), **options):
    """What this rank gets, with the classes sharded."""
    own = own_classes(len(example(loss)[0]["weight"]), rank, ranks)
    leaves, upstream, target, index, loss = prepared(loss, dtype, scale, frozen, target, own)
    value = parallel_linear_loss(
        leaves["hidden"],
        leaves["weight"],
        target,
        loss,
        process_group=dist.group.WORLD,
        bias_shard=leaves["bias"],
        sample_weight=leaves["sample_weight"],
        **{"index": index, "chunk": CHUNK, "reduction": reduction, **options},
    )
    (upstream * value if reduction == "none" else 3 * value).sum().backward()
    return leave(value, leaves, loss)


def alone(rank, ranks, loss, *, reduction="mean", target=None, dtype=torch.float64, scale=1.0, frozen=(), **options):
    """What one process gets from the whole logit matrix, as far as it is this rank's."""
    leaves, upstream, target, index, loss = prepared(loss, dtype, scale, frozen, target)
    loss.reduction = reduction
    logits = torch.nn.functional.linear(leaves["hidden"], leaves["weight"], leaves["bias"])
    objective = lw.Objective(loss, weights=options.get("weights"))
    value = objective.risk(
        logits,
        target,
        sample_weight=leaves["sample_weight"],
        index=options.get("index", index),
        total=options.get("total"),
    )
    (upstream * value if reduction == "none" else 3 * value).sum().backward()
    left = leave(value, leaves, loss)
    own = own_classes(len(leaves["weight"]), rank, ranks)
    return {name: held[own] if name in ("weight", "bias") and held is not None else held for name, held in left.items()}


def learning(part, name, value):
    """The loss with this hyperparameter learned."""
    return part(**{name: torch.tensor(value, dtype=torch.float64, requires_grad=True)})


def special():
    """The cases beside the plain ones, by name: a loss and the options of the call."""
    smooth, hinge = lw.losses.CrossEntropyLoss(0.1), lw.losses.WestonWatkinsLoss()
    first, ignored = torch.zeros(ROWS, dtype=torch.int64), torch.full((ROWS,), -100)
    soft = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weighting = lw.weights.SampleWeights(torch.linspace(0.5, 1.5, ROWS, dtype=torch.float64))
    weighted = {"weights": weighting, "index": torch.arange(ROWS)}
    return {
        "no target in a shard": (smooth, {"target": first}),
        "no target in a shard, gathered": (hinge, {"target": first}),
        "all ignored": (smooth, {"target": ignored}),
        "all ignored, none": (smooth, {"target": ignored, "reduction": "none"}),
        "soft targets": (smooth, {"target": soft / soft.sum(dim=1, keepdim=True)}),
        "one chunk": (smooth, {"chunk": ROWS}),
        "chunk chosen": (hinge, {"chunk": None}),
        "sum": (smooth, {"reduction": "sum"}),
        "total": (smooth, {"total": 7.0}),
        "total, gathered": (hinge, {"total": 7.0}),
        "weighting": (smooth, weighted),
        "weighting, gathered": (hinge, weighted),
        "frozen layer": (smooth, {"frozen": ("weight", "bias")}),
        "frozen hidden": (smooth, {"frozen": ("hidden", "sample_weight")}),
        "learned": (learning(lw.losses.CrossEntropyLoss, "label_smoothing", 0.2), {}),
        "learned, none": (learning(lw.losses.CrossEntropyLoss, "label_smoothing", 0.2), {"reduction": "none"}),
        "learned, gathered": (learning(lw.losses.BiTemperedLoss, "t2", 1.3), {}),
        "float32": (smooth, {"dtype": torch.float32}),
        "float32, gathered": (hinge, {"dtype": torch.float32}),
        "bfloat16": (smooth, {"dtype": torch.bfloat16}),
        "bfloat16, gathered": (hinge, {"dtype": torch.bfloat16}),
        "large logits": (smooth, {"dtype": torch.float32, "scale": 1e4}),
    }


def at_an_offset(rank, ranks):
    """How far float32 is off where all logits of a row share 1e6, for losses that add something to the logits."""
    batch, target, _ = example(lw.losses.CrossEntropyLoss())
    hidden, weight = (batch[name].mul(4).round() for name in ("hidden", "weight"))  # so that products are exact
    own = own_classes(CLASSES, rank, ranks)
    for loss in (lw.losses.LDRLoss(), lw.losses.LogitAdjustedLoss(torch.arange(1.0, CLASSES + 1))):
        leaf, exact = hidden.float().requires_grad_(), hidden.clone().requires_grad_()
        bias = torch.full((len(weight[own]),), 1e6)
        given = {"process_group": None, "bias_shard": bias, "reduction": "none"}
        value = parallel_linear_loss(leaf, weight[own].float() / 16, target, loss, **given)
        plain = copy.deepcopy(loss)
        plain.reduction = "none"
        wanted = plain(torch.nn.functional.linear(exact, weight / 16) + 1e6, target)
        slopes = [torch.autograd.grad(each.sum(), held)[0] for each, held in ((value, leaf), (wanted, exact))]
        yield max(float((value - wanted).abs().max()), float((slopes[0] - slopes[1]).abs().max()))


def facts(rank, ranks):
    """What is seen of single calls, by name."""
    batch, target, _ = example(smooth := lw.losses.CrossEntropyLoss(0.1))
    own = own_classes(CLASSES, rank, ranks)

    def call(hidden=batch["hidden"], weight=batch["weight"][own], target=target, loss=smooth, **options):
        return parallel_linear_loss(hidden, weight, target, loss, **{"process_group": None, "chunk": CHUNK, **options})

    def error(make=call, **wrong):
        try:
            make(**wrong)
        except (RuntimeError, TypeError, ValueError) as raised:
            return str(raised)
        return "nothing"

    poisoned = batch["weight"].clone()
    poisoned[-1, 0] = torch.nan  # a class of the last rank
    narrow = batch["weight"][own, : FEATURES - (rank == 0)]
    hinge = lw.losses.WestonWatkinsLoss()
    leaf = batch["weight"][own].clone().requires_grad_()
    seen = {
        "narrow": error(weight=narrow),
        "nan": error(weight=poisoned[own]),
        "nan, gathered": error(weight=poisoned[own], loss=hinge),
        "class": error(target=target + 3),
        "loss": error(loss=lw.losses.OneVsRestEnsLoss()),
        "shard_sizes": error(shard_sizes=[1] * ranks),
        "shard_sizes, a number": error(shard_sizes=5),
        "shard_sizes, of floats": error(shard_sizes=[2.0] * ranks),
        "differentiated twice": error(lambda: torch.autograd.grad(call(weight=leaf), leaf, create_graph=True)),
        "under a transform": error(lambda: torch.func.grad(lambda weight: call(weight=weight))(leaf.detach())),
        "bias": error(bias_shard=torch.zeros(7, dtype=torch.float64)),
        "chunk": error(chunk=0),
    }
    weight = batch["weight"][own].clone().requires_grad_()
    value = call(weight=weight)
    value.backward(retain_graph=True)
    once = weight.grad.clone()
    value.backward()
    seen["twice"] = float((weight.grad - 2 * once).abs().max()) if len(once) else 0.0
    gathered, gather = [], dist.all_gather
    dist.all_gather = lambda *arguments, **options: (gathered.append(arguments[1].shape), gather(*arguments, **options))
    sizes = [CLASSES - 3 if ranks == 2 else 2, *([3] if ranks == 2 else [0, 3])]
    call(shard_sizes=sizes)
    seen["gathered by the softmax family"] = list(gathered)
    call(shard_sizes=sizes, loss=hinge)
    seen["gathered by others"] = list(gathered)
    dist.all_gather = gather
    seen["at an offset"] = max(at_an_offset(rank, ranks))
    return seen


def main(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    plain = {f"{name} {how}": (loss, {"reduction": how}) for name, loss in losses() for how in ("mean", "none")}
    cases = {**plain, **special()}
    pairs = {
        name: (on_ranks(rank, ranks, loss, **options), alone(rank, ranks, loss, **options))
        for name, (loss, options) in cases.items()
    }
    torch.save({"pairs": pairs, "facts": facts(rank, ranks)}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
