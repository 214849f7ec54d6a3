"""Measure the forward and backward time of each loss in the catalog, as a multiple of torch's own loss of that kind.

Losses of classes are measured at (8192, 1000) float32 against ``cross_entropy``. Losses of two classes and of real
targets are measured on as many numbers, against ``binary_cross_entropy_with_logits`` and ``mse_loss``. Losses that bin
real targets are measured at 51 and 1000 bins against ``cross_entropy``. In each round the two run in turn; the ratio is
the median of the rounds' ratios.

A loss of classes is also measured in every mode that it has and that changes the work (`MODES`), against torch's loss
in the same mode.

    python bench/losses.py [--json] [--rounds 15] [--threads 2] [--only NAME ...] [--modes MODE ...] [--cpu]
"""

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lossworks.catalog import parts
from lossworks.losses import AdaptiveLDRLoss, BiTemperedLoss, CrossEntropyLoss, GeneralRobustLoss
from lossworks.roles import BINARY, CLASSES, REAL, Loss
from lossworks.testing import from_data

ROWS, COLUMNS = 8192, 1000
FULL_ROUNDS = 15
REACH = 1.5
MODES = ("plain", "soft targets", "ignored rows", "masked classes", "sample_weight", "bfloat16")
PEERS = {CLASSES: F.cross_entropy, BINARY: F.binary_cross_entropy_with_logits, REAL: F.mse_loss}


def losses() -> Iterator[tuple[str, Loss]]:
    """Yield the catalog's losses that torch has a peer for, by default and with arguments that change the work."""
    facts = from_data(num_samples=ROWS, num_classes=COLUMNS)
    for name, entry in parts().items():
        if not (inspect.isclass(entry.part) and issubclass(entry.part, Loss) and entry.part.kind in PEERS):
            continue
        arguments = {**{need: facts[need] for need in entry.part.needs}, **entry.part.settings[0]}
        yield name, entry.part(**arguments)
        named = inspect.signature(entry.part).parameters
        if "num_bins" in named:
            yield f"{name}, 1000 bins", entry.part(**{**arguments, "num_bins": 1000})
        if "normalize" in named and named["normalize"].default is None:
            yield f"{name}, normalized", entry.part(**{**arguments, "normalize": "softplus_mean"})
    yield "CrossEntropyLoss, smoothing", CrossEntropyLoss(0.1)
    yield "CrossEntropyLoss, tensor smoothing", CrossEntropyLoss(torch.tensor(0.1))
    yield "BiTemperedLoss, smoothing", BiTemperedLoss(label_smoothing=0.1)
    yield "BiTemperedLoss, tensor temperatures", BiTemperedLoss(torch.tensor(0.8), torch.tensor(1.2))
    yield "AdaptiveLDRLoss, exact", AdaptiveLDRLoss(ROWS, mode="exact")
    yield "GeneralRobustLoss, learned", GeneralRobustLoss(learn=True)


def inputs(loss: Loss) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return scores, targets and further arguments, in the size at which losses of this kind are measured."""
    generator = torch.Generator().manual_seed(0)
    columns = loss.output_size(COLUMNS)
    rows = ROWS * COLUMNS if loss.kind.flat and columns == 1 else ROWS
    output, target = loss.kind.example(rows, COLUMNS, torch.float32, generator, outputs=columns)
    return output.requires_grad_(), target, {"index": torch.arange(ROWS)} if loss.needs_index else {}


def modes(loss: Loss, asked: list[str]) -> Iterator[str]:
    """Yield the modes of these that the loss has."""
    has = {"soft targets": loss.soft_targets, "masked classes": loss.masks}
    for mode in asked:
        if mode == "plain" or (loss.kind is CLASSES and has.get(mode, True)):
            yield mode


def in_mode(mode: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return scores, targets and further arguments as the mode has them."""
    scores, generator = output.detach(), torch.Generator().manual_seed(1)
    if mode == "soft targets":
        target = torch.rand(output.shape, generator=generator).softmax(dim=1)
    elif mode == "ignored rows":
        target = torch.where(torch.arange(len(target)) % 4 == 0, -100, target)
    elif mode == "masked classes":
        away = (torch.arange(output.shape[1]) % 10 == 0).expand(output.shape).scatter(1, target[:, None], value=False)
        scores = scores.masked_fill(away, -torch.inf)
    elif mode == "bfloat16":
        scores = scores.bfloat16()
    weights = {"sample_weight": torch.rand(len(target), generator=generator)} if mode == "sample_weight" else {}
    return scores.clone().requires_grad_(), target, weights


def weighed(peer: Callable[..., Tensor], output: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    if sample_weight is None:
        return peer(output, target)
    return (peer(output, target, reduction="none") * sample_weight).sum() / sample_weight.sum()


def measure(loss: Loss, mode: str, rounds: int, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Return the median milliseconds of torch's loss and of ours, and the median of their paired ratios."""
    output, target, extra = inputs(loss)
    binned = loss.kind.scalable and output.ndim == 2
    peer = F.cross_entropy if binned else PEERS[loss.kind]
    output, target, weights = in_mode(mode, output, target)
    peer_target = torch.randint(output.shape[1], (ROWS,)) if binned else target

    def spent(step: Callable[[], Tensor]) -> float:
        output.grad = None
        began = clock()
        step().backward()
        return (clock() - began) * 1e3

    def pair() -> tuple[float, float]:
        return (
            spent(lambda: weighed(peer, output, peer_target, **weights)),
            spent(lambda: loss(output, target, **extra, **weights)),
        )

    pair()  # warms up both
    pairs = [pair() for _ in range(rounds)]
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return theirs, ours, statistics.median(mine / other for other, mine in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the ratios as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=FULL_ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="these losses alone")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="these modes alone")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time, for a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    ratios = {}
    for name, loss in losses():
        if options.only and name.split(",")[0] not in options.only:
            continue
        for mode in modes(loss, options.modes):
            row = name if mode == "plain" else f"{name}, {mode}"
            torch_time, own_time, ratios[row] = measure(loss, mode, options.rounds, clock)
            flag = "" if ratios[row] <= REACH else f"  above {REACH:g}"
            print(
                f"{row:>50}  torch {torch_time:7.1f} ms  ours {own_time:7.1f} ms  ratio {ratios[row]:6.2f}{flag}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"ratios": {name: round(ratio, 2) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
