"""The Ray engine on a cluster of three nodes on this machine: the same numbers, whatever goes away."""

import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import lossworks as lw
from lossworks.comparison import InputError, Training
from lossworks.comparison.run import _Leader as Leader
from lossworks.losses import CrossEntropyLoss, FocalLoss
from lossworks.objective import Objective
from lossworks.runs import cluster

ray = pytest.importorskip("ray")
DRIVER = os.getpid()
LOOPBACK = "127.0.0.2"  # Ray puts the machine's own address in place of 127.0.0.1
NOTICED_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """The cluster and its nodes, by their names at Ray."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        shared = {
            "num_cpus": 1,
            "node_ip_address": LOOPBACK,
            "include_dashboard": False,
            "object_store_memory": 2**27,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args={**shared, "_system_config": NOTICED_SOON})
        self.address = self.cluster.address
        self.others = {node.node_id: node for node in (self.cluster.add_node(**shared) for _ in range(2))}

    def take_away(self, name: str) -> None:
        self.cluster.remove_node(self.others.pop(name), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        ray._raylet.Config.initialize("")  # the token is read at import otherwise
        started = Nodes()
        yield started
        started.cluster.shutdown()
    ray._raylet.Config.initialize("")


@pytest.fixture(scope="module")
def session(nodes):
    """A session of the user's own, which the engine uses and leaves."""
    with cluster._session(nodes.address):
        yield nodes


def table() -> pl.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 3))
    return pl.DataFrame({f"c{i}": x[:, i] for i in range(3)} | {"y": x[:, 0] + random.normal(size=120) > 0})


def wide(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 5), nn.Tanh(), nn.Linear(5, outputs))


def quick(objectives, **options):
    options = {"training": Training(16, 40, 10), "model": wide} | options
    return lw.compare(table(), "y", objectives=objectives, folds=2, repeats=1, **options)


class Haunted(CrossEntropyLoss):
    """Does something once, on a worker that is not the driver, where a file says that it has not been done."""

    def __init__(self, once: Path, deed: str = "die") -> None:
        super().__init__()
        self.once, self.deed = str(once), deed

    def per_sample(self, output, target):
        if os.getpid() != DRIVER:
            getattr(self, self.deed)()
        return super().per_sample(output, target)

    def first(self) -> bool:
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def die(self) -> None:
        if self.first():
            os.kill(os.getpid(), signal.SIGKILL)

    def die_always(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def linger(self) -> None:
        """Wait to be taken away, on a node that is not the head's."""
        here = ray.get_runtime_context().get_node_id()
        head = next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
        if here != head and self.first():
            Path(f"{self.once}.tmp").write_text(here)
            Path(f"{self.once}.tmp").rename(f"{self.once}.node")
            time.sleep(30)

    def fail(self) -> None:
        with Path(self.once).open("a") as file:
            file.write("called\n")
        raise ArithmeticError("a bug of one's own")

    def wait(self) -> None:
        time.sleep(0.02)


def notes(result) -> list[str]:
    return [finding.text for finding in result.findings if "done again" in finding.text]


def same_files(one: Path, other: Path) -> bool:
    return (one / "results.parquet").read_bytes() == (other / "results.parquet").read_bytes()


def test_results_are_those_of_a_local_run_byte_by_byte(session, tmp_path):
    quick(["FocalLoss", "LDRLoss"], model="mlp", out=tmp_path / "local")
    quick(["FocalLoss", "LDRLoss"], model="mlp", out=tmp_path / "ray", engine="ray", address=session.address)
    assert same_files(tmp_path / "local", tmp_path / "ray")
    assert ray.is_initialized()


def test_factories_and_objectives_of_ones_own_reach_workers_that_have_no_such_file(session, tmp_path):
    own = {"mine": Objective(Haunted(tmp_path / "x", "first"))}
    local = quick(own)
    far = quick(own, engine="ray")
    assert (tmp_path / "x").exists()
    assert local.results.equals(far.results)


def test_a_killed_worker_costs_its_group_alone_and_is_said(session, tmp_path):
    own = {"a": Haunted(tmp_path / "once"), "b": FocalLoss()}
    local, far = quick(own, out=tmp_path / "local"), quick(own, out=tmp_path / "ray", engine="ray")
    assert (tmp_path / "once").exists()
    assert far.partial is None
    assert same_files(tmp_path / "local", tmp_path / "ray")
    assert len(notes(far)) == 1
    assert "(a) was lost with its worker on node" in notes(far)[0]
    assert notes(local) == []


def test_a_group_that_kills_every_worker_ends_the_run_and_what_was_done_is_kept(session, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "ATTEMPTS", 2)
    own = {"a": Haunted(tmp_path / "once", "die_always")}
    with pytest.raises(InputError, match=r"\(a\) lost its worker 2 times"):
        quick(own, engine="ray", out=tmp_path / "run")
    assert (tmp_path / "run" / "journal.sqlite").exists()


def test_a_bug_in_ones_own_code_is_raised_as_it_is_and_not_tried_again(session, tmp_path):
    with pytest.raises(ArithmeticError, match="a bug of one's own"):
        quick({"a": Haunted(tmp_path / "calls", "fail")}, engine="ray")
    assert (tmp_path / "calls").read_text() == "called\n"


def test_ctrl_c_keeps_what_is_done_frees_the_cluster_and_goes_on_locally(session, tmp_path, monkeypatch):
    own = {"a": FocalLoss(), "slow": Haunted(tmp_path / "x", "wait")}
    before, pressed = signal.getsignal(signal.SIGINT), []
    finished, count = set(), Leader.count

    def counted(self, results):
        count(self, results)
        finished.update(result["objective"] for result in results)

    monkeypatch.setattr(Leader, "count", counted)

    def interrupt(progress):
        # without a result of the reference there is nothing to report, and a second Ctrl-C would end it at once
        if progress.running == "slow" and "CrossEntropyLoss" in finished and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    options = {"training": Training(16, 400, 10, patience=100), "watch": interrupt}
    stopped = quick(own, engine="ray", out=tmp_path / "run", **options)
    assert stopped.partial == "stopped by the user"
    assert signal.getsignal(signal.SIGINT) is before
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    options = {"training": Training(16, 400, 10, patience=100)}
    resumed = lw.compare(table(), objectives=own, model=wide, resume=tmp_path / "run", engine="local")
    assert resumed.partial is None
    assert resumed.results.equals(quick(own, **options).results)


def test_a_budget_begins_no_further_group(session):
    names = ["FocalLoss", "LDRLoss", "BrierLoss"]
    result = quick(names, engine="ray", budget=0.001)
    assert result.partial == "stopped after its budget of 0.001 s"
    assert "CrossEntropyLoss" in result.ranking["objective"].to_list()
    assert result.ranking.height < 5


def test_a_node_that_is_taken_away_costs_its_groups_alone(session, tmp_path, capfd):
    own = {name: Haunted(tmp_path / "once", "linger") for name in "abc"}
    local = quick(own, out=tmp_path / "local")
    marker = tmp_path / "once.node"

    def take_away():
        wait_until(marker.exists, 30)
        session.take_away(marker.read_text())

    taker = threading.Thread(target=take_away)
    taker.start()
    far = quick(own, out=tmp_path / "ray", engine="ray")
    taker.join()
    assert len(session.others) == 1
    assert same_files(tmp_path / "local", tmp_path / "ray")
    assert marker.read_text()[:8] in notes(far)[0]
    assert capfd.readouterr().out == ""
    assert local.partial is far.partial is None


def wait_until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_an_address_that_nobody_answers_at_is_said_in_one_line(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match="no Ray cluster answers there") as raised:
        quick(["FocalLoss"], engine="ray", address=f"127.0.0.1:{free_port()}", out=tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 10
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "rya"}, "engine must be 'local' or 'ray', got 'rya'"),
        ({"address": "127.0.0.1:1"}, "goes with engine 'ray' alone"),
        ({"engine": "ray", "address": "somewhere"}, "address must be HOST:PORT"),
        ({"engine": "ray", "address": "ray://127.0.0.1:1"}, "address must be HOST:PORT"),
    ],
)
def test_engines_and_addresses_that_do_not_fit_are_said(options, says):
    with pytest.raises(InputError, match=says):
        quick(["FocalLoss"], **options)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install lossworks\[ray\]"):
        quick(["FocalLoss"], engine="ray")


def test_a_workload_comes_over_as_arrays_without_a_copy():
    import pickle

    workload = _workload()
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(workload, protocol=5, buffer_callback=buffers.append)
    received = pickle.loads(sent, buffers=buffers)
    assert received.x.data_ptr() == workload.x.data_ptr()
    assert torch.equal(received.y, workload.y)
    assert received.plan.fingerprint([]) == workload.plan.fingerprint([])


def _workload():
    from lossworks.comparison.candidates import choose_candidates
    from lossworks.comparison.models.architecture import Architecture
    from lossworks.comparison.plan import make_plan
    from lossworks.comparison.read.dataset import read
    from lossworks.comparison.train.work import Workload
    from lossworks.metrics import METRICS

    dataset = read(table(), target="y")
    plan = make_plan(
        dataset, choose_candidates(dataset, [], ["FocalLoss"]), metric=METRICS["accuracy"], folds=2, repeats=1, seed=0
    )
    x = torch.from_numpy(table().drop("y").to_numpy().astype(np.float32))
    return Workload(plan, dataset, x, Architecture("linear"), torch.device("cpu"))
