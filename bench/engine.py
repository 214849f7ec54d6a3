"""Measure the time per model and step of the engine, which trains many models at once, against a plain PyTorch loop.

The plain loop trains one model after another. Both train the same three-layer MLP (30 inputs, 10 classes) with AdamW
and cross-entropy on mini-batches gathered from one table, without early stopping. The plain loop reads a table that was
scaled beforehand; the engine scales the rows that it gathers. The two run in turn, both warmed up, and the ratio is the
median of the rounds' ratios. The plain loop runs with one thread and with all threads, and the faster of the two
counts, because small operations are slow when they wait for a busy core.

    python bench/engine.py [--json] [--rounds 7] [--threads 2] [--sizes 64x32x32 ...]
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.train.engine import train
from lossworks.comparison.train.jobs import Job, Training
from lossworks.losses import CrossEntropyLoss
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective

ROWS, COLUMNS, CLASSES = 10_000, 30, 10
REACH = {"64x32x32": 20.0, "256x64x64": 9.0, "64x128x64": 5.5, "64x256x256": 1.5}
FULL_ROUNDS = 7


def engine_time(x: torch.Tensor, y: torch.Tensor, replicas: int, batch: int, width: int, steps: int) -> float:
    """Return the microseconds per model and step, measured over a second interval; the first one only warms up."""
    inner = torch.arange(8)
    jobs = [Job(Objective(CrossEntropyLoss()), torch.arange(ROWS), inner, seed, seed) for seed in range(replicas)]
    training = Training(batch_size=batch, max_steps=2 * steps, eval_every=steps, race_after=0.0)
    seen: dict[int, float] = {}
    train(
        x,
        y,
        jobs,
        Architecture(width=width),
        training,
        find_metric("accuracy"),
        task=Multiclass(),
        progress=lambda done, total, best: seen.setdefault(done, time.perf_counter()),
    )
    half = replicas * steps
    return (seen[2 * half] - seen[half]) / half * 1e6


def plain_time(x: torch.Tensor, y: torch.Tensor, batch: int, width: int, steps: int, models: int = 2) -> float:
    """Return the microseconds per model and step of the plain loop, on one model: each further one takes as long."""
    spent = 0.0
    for _ in range(models):
        layers = nn.Linear(COLUMNS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
        network = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(network.parameters())
        order = torch.randint(ROWS, (steps, batch))
        began = time.perf_counter()
        for rows in order:
            loss = F.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spent += time.perf_counter() - began
    return spent / (models * steps) * 1e6


def fastest_plain_time(x: torch.Tensor, y: torch.Tensor, batch: int, width: int, steps: int) -> float:
    """Return the time of the plain loop with one thread or with all threads, whichever is faster now."""
    threads, times = torch.get_num_threads(), []
    for count in {1, threads}:
        torch.set_num_threads(count)
        times.append(plain_time(x, y, batch, width, steps))
    torch.set_num_threads(threads)
    return min(times)


def measure(size: str, rounds: int) -> tuple[float, float, float]:
    """Return the median microseconds of the plain loop and of the engine, and the median of their paired ratios."""
    replicas, batch, width = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    engine_steps = max(10, 2**24 // (replicas * batch * width))
    plain_steps = 50
    pairs = []
    for number in range(rounds + 1):
        pair = (
            fastest_plain_time(x, y, batch, width, plain_steps),
            engine_time(x, y, replicas, batch, width, engine_steps),
        )
        if number:  # the first round only warms up both
            pairs.append(pair)
    plain, engine = (statistics.median(column) for column in zip(*pairs, strict=True))
    return plain, engine, statistics.median(plain / engine for plain, engine in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the ratios as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=FULL_ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=list(REACH), help="replicas x batch x width")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ratios = {}
    for size in options.sizes:
        plain, engine, ratios[size] = measure(size, options.rounds)
        wanted = f"  reach {REACH[size]:g}" if size in REACH else ""
        print(
            f"{size:>12}  plain {plain:8.1f} us  engine {engine:8.1f} us  ratio {ratios[size]:6.2f}{wanted}", flush=True
        )
    if options.json:
        print(json.dumps({"ratios": {size: round(ratio, 2) for size, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
