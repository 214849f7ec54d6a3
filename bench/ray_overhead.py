"""Measure what a group costs on a Ray cluster beyond its work: time, bytes, and putting the data into the object store.

Groups without any work run through the Ray engine, on a cluster that the script begins, and through the local engine,
in turn. The difference between the two is the cost of the Ray engine; the medians over the rounds are printed. Bytes
are the sizes of a task's arguments and of its results. A table of 100 MB is put into the object store, and a worker
reads it.

    python bench/ray_overhead.py [--json] [--rounds 7] [--groups 200]
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
from ray import cloudpickle

from lossworks.comparison.candidates import choose_candidates
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.plan import make_plan
from lossworks.comparison.read.dataset import embedded
from lossworks.comparison.read.encode import Encoder
from lossworks.comparison.train.jobs import Training
from lossworks.comparison.train.work import Workload
from lossworks.runs import cluster
from lossworks.runs.engines import Engine, Local
from lossworks.runs.units import Unit

TABLE_BYTES = 100 * 10**6


@dataclass
class Idle:
    """The units of a workload, without their work: each one returns at once."""

    workload: Workload

    @property
    def device(self) -> torch.device:
        return self.workload.device

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.workload.units

    def order(self) -> list[int]:
        return self.workload.order()

    def work(self, number: int, **_: object) -> list[dict[str, int]]:
        return [{"number": number}]

    def own_code(self) -> list[object]:
        return [Idle]


def workload_of(groups: int, training: Training | None = None) -> Workload:
    dataset = embedded()
    x = torch.from_numpy(Encoder.fit(dataset.features).transform(dataset.features))
    candidates = choose_candidates(dataset, [], ["FocalLoss"])
    plan = make_plan(dataset, candidates, metric=dataset.task.metrics[0], folds=5, repeats=2, seed=0, training=training)
    first = plan.groups[0]
    alike = (replace(first, number=number, replicas=tuple(map(replace, first.replicas))) for number in range(groups))
    plan = replace(plan, groups=tuple(alike))
    return Workload(
        plan, replace(dataset, features=dataset.features[:0]), x, Architecture("linear"), torch.device("cpu")
    )


def seconds(engine: Engine, workload: Idle, groups: int) -> float:
    began = time.perf_counter()
    done = list(engine.run(workload, range(groups), tell=lambda *_: None, begin=lambda: True, stop=lambda: False))
    if len(done) != groups:
        raise RuntimeError(f"{len(done)} of {groups} groups came back")
    return time.perf_counter() - began


def put_and_read(rounds: int) -> tuple[float, float]:
    """Return the milliseconds to put the table into the store, and those until a worker has it as an array."""
    table = np.random.default_rng(0).random((TABLE_BYTES // 400, 100), dtype=np.float32)

    @ray.remote
    def read(shipped: list[ray.ObjectRef]) -> float:
        began = time.perf_counter()
        array = ray.get(shipped[0])
        return time.perf_counter() - began + 0 * float(array[0, 0])

    putting, reading = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        shipped = ray.put(table)
        putting.append(time.perf_counter() - began)
        reading.append(ray.get(read.remote([shipped])))
        del shipped
    return statistics.median(putting) * 1e3, statistics.median(reading) * 1e3


def measure(rounds: int, groups: int) -> dict[str, float]:
    workload, far = Idle(workload_of(groups)), cluster.Ray()
    with cluster._session(None):
        seconds(far, workload, groups)
        pairs = [(seconds(far, workload, groups), seconds(Local(), workload, groups)) for _ in range(rounds)]
        few = [seconds(far, workload, 1) for _ in range(rounds)]
        put, read = put_and_read(rounds)
        nodes = int(ray.cluster_resources()["CPU"])
    results = workload_of(1, Training(64, 400, 10)).work(0)
    many = workload_of(1000)
    return {
        "processors": nodes,
        "groups": groups,
        "ms_per_group": statistics.median(a - b for a, b in pairs) / groups * 1e3,
        "ms_per_group_local": statistics.median(b for _, b in pairs) / groups * 1e3,
        "ms_for_one_group": statistics.median(few) * 1e3,
        "bytes_per_group_sent": len(cloudpickle.dumps((0, cluster._software()))) + 28,
        "bytes_per_group_back": len(cloudpickle.dumps(("done", results))),
        "models_per_group": len(results or ()),
        "bytes_of_workload": len(cloudpickle.dumps(workload_of(1))),
        "bytes_per_group_of_plan": (len(cloudpickle.dumps(many)) - len(cloudpickle.dumps(workload_of(1)))) / 999,
        "put_100_mb_ms": put,
        "read_100_mb_ms": read,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--groups", type=int, default=200)
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    found = measure(options.rounds, options.groups)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {value:,.4g}" if isinstance(value, float) else f"{name:28} {value:,}")


if __name__ == "__main__":
    main()
