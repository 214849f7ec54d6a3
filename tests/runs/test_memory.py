"""Memory: how much there is, and that a lack of it changes what is trained at a time and no number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

import lossworks as lw
from lossworks.comparison import InputError, Training
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.train import engine, packing
from lossworks.comparison.train.engine import Trained, train
from lossworks.comparison.train.jobs import Job
from lossworks.losses import AdaptiveLDRLoss, CrossEntropyLoss, LDRLoss
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from lossworks.runs.memory import available, budget, is_out_of_memory, size

ROWS = 240
ACCURACY = find_metric("accuracy")
RACING = Training(batch_size=16, max_steps=30, eval_every=5, patience=3, lr=3e-3, race_after=1 / 3)

# How much there is


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [
        ("4GB", 4 * 10**9),
        ("4 gb", 4 * 10**9),
        ("1.5G", 1.5 * 10**9),
        (".5MB", 5 * 10**5),
        ("512MiB", 2**29),
        ("2k", 2000),
        ("7", 7),
        (7, 7),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read_as_they_are_written(given, bytes_):
    assert size(given) == bytes_


@pytest.mark.parametrize(
    "given",
    ["", "GB", "4 apples", "-1GB", "0", "0.1", "1e9", "4GBB", "nan", -5, 0, True, 2.5, "9" * 400 + "GB", 10**400],
)
def test_what_is_no_size_is_said(given):
    with pytest.raises(InputError, match="memory must be a size > 0 such as '4GB' or '512MB'"):
        size(given)


def machine(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = {"proc__meminfo": "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  500 kB\n"}
MINE = {"proc__self__cgroup": "0::/jobs/mine\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 512_000),
        (MEMINFO | {"sys__fs__cgroup__memory.max": "max\n", "sys__fs__cgroup__memory.current": "5\n"}, 512_000),
        (MEMINFO | {"sys__fs__cgroup__memory.max": "900\n", "sys__fs__cgroup__memory.current": "600\n"}, 300),
        (
            MEMINFO
            | MINE
            | {
                "sys__fs__cgroup__jobs__mine__memory.max": "900",
                "sys__fs__cgroup__jobs__mine__memory.current": "600",
                "sys__fs__cgroup__jobs__mine__memory.stat": "anon 1\ninactive_file 200\n",
            },
            500,
        ),
        (
            {
                "sys__fs__cgroup__memory__memory.limit_in_bytes": "100",
                "sys__fs__cgroup__memory__memory.usage_in_bytes": "160",
            },
            0,
        ),
    ],
    ids=["nothing is known", "machine", "no limit", "container", "control group", "used up"],
)
def test_what_is_free_is_the_least_of_all_limits(files, free, tmp_path):
    assert available(machine(tmp_path, **files)) == free


def test_the_budget_is_what_is_given_or_half_of_what_is_free(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("lossworks.runs.memory.available", lambda: 1000)
    assert budget("3kB", cpu) == 3000
    assert budget(None, cpu) == 500
    monkeypatch.setattr("lossworks.runs.memory.available", lambda: None)
    assert budget(None, cpu) is None


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_was_too_little(error, is_it):
    assert is_out_of_memory(error) is is_it


def test_models_that_cannot_be_trained_in_parts_are_said_where_they_exceed_the_memory(monkeypatch):
    monkeypatch.setattr(packing, "taken_by", lambda units, training: sum(units))
    said = packing.too_large([[2_000_000], [1_000_000, 3_000_000]], RACING, 3_999_999)
    assert said == ["models that are trained at once take about 4 MB, more than the 4 MB that memory allows"]
    assert packing.too_large([[1_000_000, 3_000_000]], RACING, 4_000_000) == []
    assert packing.too_large([[1_000_000]], RACING, None) == packing.too_large([], RACING, 1) == []


# What a lack of it changes


def noisy() -> Objective:
    return Objective(CrossEntropyLoss(), perturb=GaussianNoise(torch.tensor(0.5)))


def conv(shape, outputs):
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, outputs))


CASES = {
    "mlp": ("mlp", 256, lambda n: Objective(CrossEntropyLoss())),
    "linear": ("linear", 1, lambda n: Objective(CrossEntropyLoss())),
    "settings": ("mlp", 256, lambda n: Objective(LDRLoss(torch.tensor(0.1 + n % 3)))),
    "memory per row": ("mlp", 256, lambda n: Objective(AdaptiveLDRLoss(ROWS, torch.tensor(2.0 + n % 3)))),
    "penalty": (
        "mlp",
        256,
        lambda n: Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(torch.tensor(0.01))]),
    ),
    "random": ("mlp", 256, lambda n: noisy()),
    "own model": (conv, 1, lambda n: Objective(CrossEntropyLoss())),
}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(packing, "TILE_BYTES", 2**20)
    monkeypatch.setattr(packing, "HALVED_BYTES", 2**12)


def trained(case: str, **options) -> tuple[Trained, torch.Tensor]:
    """Twelve replicas, three a contest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 6, generator=generator)
    y = (x[:, :3] + 0.3 * x[:, 3:]).argmax(dim=1)
    model, width, objective = CASES[case]
    jobs = [Job(objective(n), torch.arange(n, 180), torch.arange(180, 220 - n % 3), n, n // 3) for n in range(12)]
    outputs = {}

    def finished(found: Trained, numbers: list[int]) -> None:
        outputs.update((n, found.outputs(n, torch.arange(ROWS))) for n in numbers)

    found = train(
        x, y, jobs, Architecture(model, width), RACING, ACCURACY, task=Multiclass(), finished=finished, **options
    )
    return found, torch.stack([outputs[number] for number in range(12)])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES)
def test_how_much_memory_there_is_changes_no_bit(case):
    whole, wanted = trained(case)
    assert whole.parts == 1
    for memory in (1, 8 * 10**6):
        split, outputs = trained(case, memory=memory)
        assert torch.equal(outputs, wanted)
        assert split.curves == whole.curves
        assert split.dropped == whole.dropped
        assert split.parts > 1 or memory > 1
    assert split.parts <= trained(case, memory=1)[0].parts


class Short:
    """A machine on which no more than so many models can be in training at once: the error comes after the work."""

    def __init__(self, monkeypatch, most: int, error: Exception) -> None:
        self.failed, run = [], engine._run

        def limited(tiles, *arguments):
            models = sum(len(tile.replicas) for tile in tiles)
            found = run(tiles, *arguments)
            if models > most:
                self.failed.append(models)
                raise error
            return found

        monkeypatch.setattr(engine, "_run", limited)


ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried")]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("case", ["settings", "memory per row", "random"])
def test_what_ran_out_of_memory_is_trained_in_halves_to_the_same_bits_and_says_so(case, error, monkeypatch):
    whole, wanted = trained(case)
    short = Short(monkeypatch, 5, error)
    seen = []
    split, outputs = trained(case, progress=lambda *now: seen.append(now))
    assert short.failed == [12, 6, 6]
    assert torch.equal(outputs, wanted)
    assert split.curves == whole.curves
    assert split.parts == 4
    assert [note.partition(":")[0] for note in split.short] == [
        f"memory ran out with {models} models in training at once" for models in short.failed
    ]
    done = [now[0] for now in seen]
    assert done == sorted(done), "progress never goes back"
    assert seen[-1][:2] == (12 * 30, 12 * 30)


@pytest.mark.usefixtures("small_tiles")
def test_settings_that_race_each_other_stay_together_or_it_is_said(monkeypatch):
    Short(monkeypatch, 2, MemoryError())
    with pytest.raises(
        MemoryError, match=r"3 models that must be trained at once take about .* MB, more than there is"
    ):
        trained("settings")


def test_an_error_that_is_not_of_memory_is_not_tried_again(monkeypatch):
    short = Short(monkeypatch, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        trained("mlp")
    assert short.failed == [12]


# A comparison


def compared(**options):
    random = np.random.default_rng(0)
    x = random.normal(size=(90, 3))
    label = np.where(x[:, 0] > 0.2, "yes", "no")
    data = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": label}
    given = {"objectives": ["LDRLoss"], "folds": 4, "repeats": 1, "training": RACING} | options
    return lw.compare(data, "label", **given)


@pytest.mark.usefixtures("small_tiles")
def test_a_comparison_says_that_memory_ran_out_and_has_the_same_results(monkeypatch):
    whole = compared()
    assert "work" not in {finding.key for finding in whole.findings}
    Short(monkeypatch, 8, MemoryError())
    seen = []
    split = compared(watch=seen.append, objectives=["LDRLoss", "FocalLoss"])
    notes = [finding.text for finding in split.findings if finding.key == "work"]
    wanted = "LDRLoss: memory ran out with 12 models in training at once: they were trained in parts"
    assert any(note.startswith(wanted) for note in notes), notes
    assert any(progress.note.startswith("LDRLoss: memory ran out") for progress in seen)
    results = split.results.filter(split.results["objective"] != "FocalLoss")
    assert_frame_equal(results, whole.results, check_exact=True)


@pytest.mark.usefixtures("small_tiles")
def test_a_budget_that_is_too_small_for_anything_is_kept_as_far_as_it_goes_and_said():
    whole, small = compared(), compared(memory="1kB")
    assert_frame_equal(small.results, whole.results, check_exact=True)
    assert any("more than the 0 MB that memory allows" in finding.text for finding in small.findings)


def test_a_group_that_never_fits_is_one_line_and_what_was_trained_is_kept(monkeypatch, tmp_path):
    begun, run = [], engine._run

    def fails(tiles, *arguments):
        begun.append(1)
        if len(begun) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(tiles, *arguments)

    monkeypatch.setattr(engine, "_run", fails)
    with pytest.raises(InputError, match=r"^LDRLoss: out of memory .* what was trained before is kept$") as caught:
        compared(out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    seen = []
    compared(out=tmp_path / "run", watch=seen.append)
    assert {progress.running for progress in seen} == {"LDRLoss"}


def test_a_wrong_budget_is_said_before_anything_is_read():
    with pytest.raises(InputError, match="memory must be a size"):
        lw.compare("nowhere.csv", "label", memory="much")


# A real one

REAL = """
import json, resource
import torch
from lossworks.comparison.tasks.multiclass import Multiclass
from lossworks.comparison.train.engine import train
from lossworks.comparison.train.jobs import Job, Training
from lossworks.comparison.models.architecture import Architecture
from lossworks.losses import CrossEntropyLoss
from lossworks.metrics.registry import find_metric
from lossworks.objective import Objective

x = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(dim=1)
jobs = [Job(Objective(CrossEntropyLoss()), torch.arange(100), torch.arange(100, 200), n, n) for n in range(10)]
few = Training(batch_size=8, max_steps=2, eval_every=2)


def peak():
    with open("/proc/self/status") as file:  # not ru_maxrss, which a child inherits from who started it
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def taken(width=1000, **options):
    before, outputs = peak(), {}

    def finished(found, numbers):
        outputs.update((n, found.outputs(n, torch.arange(9)).tolist()) for n in numbers)

    metric = find_metric("accuracy")
    found = train(x, y, jobs, Architecture("mlp", width), few, metric, task=Multiclass(), finished=finished, **options)
    outputs = [outputs[n] for n in range(10)]
    return {"taken": peak() - before, "parts": found.parts, "short": len(found.short), "outputs": outputs}


taken(8)  # what the libraries take, they take at first use
kept = taken(memory=130_000_000)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 200_000_000, resource.RLIM_INFINITY))
survived = taken()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps([kept, survived, taken()]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space, as Linux has it")
def test_a_real_budget_is_kept_and_a_real_lack_of_memory_is_survived():
    # What is given back goes back at once, and threads share one heap, so that the sizes are those of what is in use.
    heap = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = os.environ | heap | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    kept, survived, free = json.loads(ran.stdout)
    assert kept["parts"] > 1
    assert kept["short"] == 0
    assert kept["taken"] < 140_000_000
    assert survived["short"] > 0, "the system refused memory, and the models were trained in parts"
    assert free["parts"] == 1
    assert kept["outputs"] == survived["outputs"] == free["outputs"]
