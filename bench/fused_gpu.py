"""Measure time and memory of the fused cross-entropy on a CUDA GPU, forward and backward, against its alternatives.

The alternatives are torch's plain form, torch's chunked ``linear_cross_entropy``, Liger-Kernel and cut-cross-entropy.
The last two are measured if they are installed, and the output says which one is missing. The three matrix products
alone are measured too, because no exact form can be faster. In each round all run in turn; a ratio is our time over
theirs, as the median of the rounds' ratios. Memory is the peak above the inputs, with the gradients included.
Cut-cross-entropy leaves out gradients that it finds small, so that its time depends on the data; ``cut-cross-entropy
exact`` leaves out none. ``gap`` is the largest difference between the weight's gradient and that of the plain form in
float32, divided by the latter's largest entry.

    python bench/fused_gpu.py [--json] [--rounds 15] [--dtype bfloat16 float32] [--size 8192x4096x131072 ...]
        [--chunk ROWS]
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import lossworks as lw

SIZES = ("8192x2048x32000", "8192x4096x65536", "8192x4096x131072")
REACH = 1.0
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def contenders(chunk: int | None) -> tuple[dict[str, Step], list[str]]:
    """Return each form of the cross-entropy by name, ours first, and the names of those that are not installed."""
    loss = lw.losses.CrossEntropyLoss()
    steps: dict[str, Step] = {
        "lossworks": lambda hidden, weight, target: lw.fused.linear_loss(hidden, weight, target, loss, chunk=chunk),
        "torch plain": lambda hidden, weight, target: F.cross_entropy(hidden @ weight.T, target),
    }
    missing = []
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        steps["torch chunked"] = partial(F.linear_cross_entropy, options=options)
    else:
        missing.append("torch chunked")
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        steps["Liger-Kernel"] = lambda hidden, weight, target: liger(weight, hidden, target)
    else:
        missing.append("Liger-Kernel")
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        steps["cut-cross-entropy"] = linear_cross_entropy
        steps["cut-cross-entropy exact"] = partial(linear_cross_entropy, filter_eps=None)
    else:
        missing.append("cut-cross-entropy")
    return steps, missing


def inputs(size: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden rows and weights whose logits have unit variance, and targets, a sixteenth of which is ignored."""
    rows, features, classes = (int(number) for number in size.split("x"))
    generator = torch.Generator("cuda").manual_seed(0)
    draw = partial(torch.randn, generator=generator, device="cuda")
    hidden = draw(rows, features).to(dtype).requires_grad_()
    weight = (draw(classes, features) / features**0.5).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator, device="cuda")
    target[::16] = -100
    return hidden, weight, target


def spent(step: Step, hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[float, float]:
    """Return the milliseconds of a forward and backward pass, and the peak of memory above the inputs in MB."""
    hidden.grad = weight.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    step(hidden, weight, target).backward()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended), (torch.cuda.max_memory_allocated() - before) / 2**20


def products(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Compute only the three matrix products, for logits and the two gradients, over chunks that need little memory."""
    with torch.no_grad():
        for part in hidden.split(1024):
            logits = part @ weight.T
            torch.mm(logits, weight)
            torch.mm(logits.T, part)
    return hidden.sum() * 0


def gap(step: Step, hidden: Tensor, weight: Tensor, target: Tensor) -> float:
    """Return how far the weight's gradient is from that of the plain form in float32."""
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    F.cross_entropy(exact[0] @ exact[1].T, target).backward()
    hidden.grad = weight.grad = None
    step(hidden, weight, target).backward()
    assert exact[1].grad is not None
    assert weight.grad is not None
    return float((weight.grad - exact[1].grad).abs().max() / exact[1].grad.abs().max())


def measure(size: str, dtype: torch.dtype, rounds: int, chunk: int | None) -> dict[str, dict[str, float | str]]:
    """Return each contender's median time, peak memory, paired ratio of ours to it, and gap."""
    hidden, weight, target = inputs(size, dtype)
    steps, missing = contenders(chunk)
    found: dict[str, dict[str, float | str]] = {name: {"error": "not installed"} for name in missing}
    alive: dict[str, Step] = {}
    for name, step in steps.items():
        try:
            away = gap(step, hidden, weight, target)  # this also warms up the contender
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            found[name] = {"error": (str(error) or type(error).__name__).splitlines()[0]}
            continue
        alive[name], found[name] = step, {"gap": away}
    alive["three products"], found["three products"] = products, {}
    spent(products, hidden, weight, target)
    times: dict[str, list[float]] = {name: [] for name in alive}
    for _ in range(rounds):
        for name, step in alive.items():
            took, peak = spent(step, hidden, weight, target)
            times[name].append(took)
            found[name]["mb"] = peak
    for name, took in times.items():
        found[name]["ms"] = statistics.median(took)
        found[name]["time_ratio"] = statistics.median(
            mine / other for mine, other in zip(times["lossworks"], took, strict=True)
        )
        if name != "three products":
            found[name]["memory_ratio"] = float(found["lossworks"]["mb"]) / float(found[name]["mb"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--size", nargs="+", default=SIZES, help="rows x features x classes, as 8192x4096x131072")
    parser.add_argument("--chunk", type=int, help="rows in a chunk of ours, if not as many as it chooses")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/fused_gpu.py measures on a CUDA GPU, and torch finds none here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    results = {}
    for dtype in options.dtype:
        for size in options.size:
            print(f"\n{size} {dtype}")
            results[f"{size} {dtype}"] = found = measure(size, getattr(torch, dtype), options.rounds, options.chunk)
            for name, facts in found.items():
                if "error" in facts:
                    print(f"{name:>26}  {facts['error']}")
                    continue
                flag = "" if name in ("lossworks", "three products") or facts["time_ratio"] <= REACH else "  slower"
                flag += "  larger" if facts.get("memory_ratio", 0) > REACH else ""
                share = f"ours takes {facts['time_ratio']:5.2f} of its time"
                if "memory_ratio" in facts:
                    share += f", {facts['memory_ratio']:5.2f} of its memory, gap {facts['gap']:.1e}"
                print(f"{name:>26}  {facts['ms']:8.2f} ms  {facts['mb']:8.0f} MB  {share}{flag}", flush=True)
            torch.cuda.empty_cache()
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "results": results}))


if __name__ == "__main__":
    main()
