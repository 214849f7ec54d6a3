"""Measure time and memory of a fused loss, that is, a linear layer and its loss without the logit matrix.

Measured are the forward and backward pass in float32 on the CPU. Fused cross-entropy is compared with the three matrix
products that no form can do without, with the plain form, and with torch's chunked `linear_cross_entropy` at the chunk
size that it chooses. In every other mode (`modes`: soft targets, smoothing, ignored rows, masked classes, weights, half
precision and so on) it is compared with the plain form in that mode. Every other row-wise loss of classes is compared
with fused cross-entropy. In each round all run in turn; a ratio is the median of the rounds' ratios.

Peak memory is measured in a fresh process. It is the highest resident size (VmHWM, reset before the step), minus the
size before the step and minus the gradients of hidden and weight, which every form must compute.

    python bench/fused.py [--json] [--rounds 5] [--threads 2] [--sizes large small] [--losses NAME ...] [--cpu]
                          [--modes MODE ...] [--no-torch]
"""

import argparse
import inspect
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import lossworks as lw
from lossworks.catalog import parts
from lossworks.losses import CrossEntropyLoss
from lossworks.roles import Loss
from lossworks.testing import from_data

SIZES = {"small": (1024, 512, 64_000), "large": (2048, 512, 128_000)}
REACH = {"plain": 0.9, "torch": 1.0, "products": 1.1, "loss": 1.15, "memory": 1 / 8}


def inputs(size: str) -> tuple[Tensor, Tensor, Tensor]:
    n, d, classes = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator).requires_grad_()
    weight = torch.randn(classes, d, generator=generator).mul_(d**-0.5).requires_grad_()
    return hidden, weight, torch.randint(classes, (n,), generator=generator)


def products(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        logits = hidden @ weight.T
        hidden.grad, weight.grad = logits @ weight, logits.T @ hidden


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    F.cross_entropy(F.linear(hidden, weight), target).backward()


def chunked(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    F.linear_cross_entropy(hidden, weight, target, options=LinearCrossEntropyOptions()).backward()


def fused(loss: Loss) -> Callable[[Tensor, Tensor, Tensor], None]:
    extra = {"index": torch.arange(max(n for n, _, _ in SIZES.values()))} if loss.needs_index else {}

    def step(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
        some = {name: column[: len(hidden)] for name, column in extra.items()}
        target = hidden.detach()[:, 0] if loss.kind.flat else target
        lw.fused.linear_loss(hidden, weight, target, loss, **some).backward()

    return step


FORMS = {"products": products, "plain": plain, "torch": chunked, "fused": fused(CrossEntropyLoss())}


def soft(classes: int, target: Tensor) -> Tensor:
    """Return class probabilities of which .9 is the label's, the rest is spread over all classes."""
    return torch.full((len(target), classes), 0.1 / classes).scatter_(1, target[:, None], 0.9)


def modes(classes: int, rows: int) -> dict[str, tuple[Loss, dict[str, Tensor | str | lw.roles.Weighting]]]:
    """Return each mode's loss, and its further arguments to `linear_loss`."""
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(classes, generator=generator)
    masked = bias.masked_fill(torch.arange(classes) % 10 == 0, -torch.inf)
    plain = CrossEntropyLoss()
    return {
        "smoothing": (CrossEntropyLoss(0.1), {}),
        "tensor smoothing": (CrossEntropyLoss(torch.tensor(0.1)), {}),
        "soft targets": (plain, {}),
        "ignored rows": (plain, {}),
        "bias": (plain, {"bias": bias}),
        "masked classes": (plain, {"bias": masked}),
        "sample_weight": (plain, {"sample_weight": torch.rand(rows, generator=generator)}),
        "class weights": (plain, {"weights": lw.weights.ClassBalanced(torch.ones(classes))}),
        "weights of the losses": (plain, {"weights": lw.weights.KLDRO(temperature=1.0)}),
        "reduction none": (plain, {"reduction": "none"}),
        "bfloat16": (plain, {}),
    }


def in_mode(mode: str, loss: Loss, extra: dict, *, fused: bool) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Return a step of the mode, fused or plain."""

    def step(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
        if mode == "soft targets":
            target = soft(len(weight), target)
        elif mode == "ignored rows":
            target = torch.where(torch.arange(len(target)) % 4 == 0, -100, target)
        elif mode == "masked classes":
            target = torch.where(target % 10 == 0, target + 1, target)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16"):
            if fused:
                value = lw.fused.linear_loss(hidden, weight, target, loss, **extra)
            else:
                logits = F.linear(hidden, weight, extra.get("bias"))
                value = plain_value(loss, logits, target, extra)
        value.sum().backward()

    return step


def plain_value(loss: Loss, logits: Tensor, target: Tensor, extra: dict) -> Tensor:
    if "weights" in extra:
        return lw.Objective(loss, extra["weights"]).risk(logits, target)
    if extra.get("reduction") == "none":
        return F.cross_entropy(logits, target, reduction="none")
    return loss(logits, target, **{name: extra[name] for name in extra if name == "sample_weight"})


def losses(classes: int, only: list[str] | None) -> dict[str, Loss]:
    """Return every row-wise loss of classes in its default setting, and further settings that change the work."""
    facts = from_data(num_samples=max(n for n, _, _ in SIZES.values()), num_classes=classes)
    found: dict[str, Loss] = {"CrossEntropyLoss, smoothed": CrossEntropyLoss(0.1)}
    for name, entry in parts().items():
        if not (inspect.isclass(entry.part) and issubclass(entry.part, Loss) and entry.part.rowwise):
            continue
        if entry.part.kind.has_classes and name != "CrossEntropyLoss":
            arguments = {**{need: facts[need] for need in entry.part.needs}, **entry.part.settings[0]}
            found[name] = entry.part(**arguments)
        elif "num_bins" in inspect.signature(entry.part).parameters:
            found[name] = entry.part(-3.0, 3.0, num_bins=classes)
    return {name: loss for name, loss in found.items() if only is None or name.split(",")[0] in only}


def spent(step: Callable[[Tensor, Tensor, Tensor], None], given: tuple[Tensor, ...], clock: Callable) -> float:
    given[0].grad = given[1].grad = None
    began = clock()
    step(*given)
    return clock() - began


def paired(steps: dict[str, Callable], size: str, rounds: int, clock: Callable) -> dict[str, list[float]]:
    given = inputs(size)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            took = spent(step, given, clock)
            if turn:  # the first turn only warms up
                times[name].append(took)
    return times


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))


def resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key}")


def peak(form: str, size: str) -> int:
    """Return the peak bytes of this process beyond inputs and gradients."""
    step, given = FORMS[form], inputs(size)
    small = (torch.randn(64, 512).requires_grad_(), torch.randn(100, 512).requires_grad_(), torch.zeros(64).long())
    step(*small)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(*given)
    gradients = sum(4 * tensor.numel() for tensor in given[:2])
    return resident("VmHWM") - before - gradients


def memory(size: str, threads: int) -> dict[str, float]:
    n, _, classes = SIZES[size]
    shares = {}
    for form in ("plain", "torch", "fused"):
        command = [sys.executable, __file__, "--peak", form, "--sizes", size, "--threads", str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        shares[form] = int(done.stdout) / (4 * n * classes)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the ratios as one JSON object, last")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--losses", nargs="*", help="time these losses alone; none with no name")
    parser.add_argument("--modes", nargs="*", help="time cross-entropy in these modes alone; in none with no name")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time, for a busy machine")
    parser.add_argument("--no-torch", action="store_true", help="leave out torch's chunked form, which takes long")
    parser.add_argument("--peak", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak, options.sizes[0]))
        return
    clock = time.process_time if options.cpu else time.perf_counter
    found: dict[str, dict[str, float]] = {}
    for size in options.sizes:
        n, d, classes = SIZES[size]
        print(f"({n}, {d}) x {classes} classes")
        forms = {name: form for name, form in FORMS.items() if not (options.no_torch and name == "torch")}
        times = paired(forms, size, options.rounds, clock)
        found[size] = {name: ratio(times, "fused", name) for name in forms if name != "fused"}
        for name, value in found[size].items():
            milliseconds = statistics.median(times[name]) * 1e3
            print(
                f"{'time against ' + name:>40}  {milliseconds:8.0f} ms  ratio {value:6.3f}{flag(value, name)}",
                flush=True,
            )
        for form, share in memory(size, options.threads).items():
            found[size][f"memory {form}"] = share
            print(f"{'memory of ' + form:>40}  {share:6.3f} of the logit matrix", flush=True)
        for mode, (loss, extra) in modes(classes, n).items():
            if options.modes is not None and mode not in options.modes:
                continue
            steps = {name: in_mode(mode, loss, extra, fused=name == "fused") for name in ("plain", "fused")}
            found[size][mode] = ratio(paired(steps, size, options.rounds, clock), "fused", "plain")
            value = found[size][mode]
            print(f"{mode + ', against plain':>40}  ratio {value:6.3f}{flag(value, 'plain')}", flush=True)
        for name, loss in losses(classes, options.losses).items():
            times = paired({"fused": FORMS["fused"], name: fused(loss)}, size, options.rounds, clock)
            found[size][name] = ratio(times, name, "fused")
            print(f"{name:>40}  ratio {found[size][name]:6.3f}{flag(found[size][name], 'loss')}", flush=True)
    if options.json:
        print(json.dumps({size: {k: round(v, 3) for k, v in row.items()} for size, row in found.items()}))


def flag(value: float, what: str) -> str:
    return "" if value <= REACH[what] else f"  above {REACH[what]:g}"


if __name__ == "__main__":
    main()
