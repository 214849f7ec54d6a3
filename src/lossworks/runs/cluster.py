"""Units of work on a Ray cluster: many machines, each of which may fail."""

import contextlib
import importlib
import importlib.util
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lossworks.checks import InputError
from lossworks.runs.memory import budget
from lossworks.runs.software import versions
from lossworks.runs.units import Results, Workload

__all__ = ["Ray"]

ATTEMPTS = 4
"""How often a group is started at most, so that a group that kills its worker each time is not started forever."""
ANSWERS_WITHIN = 5.0
"""The seconds within which an address must answer."""
JOINED_WITHIN = 30.0
"""The seconds within which a cluster must be joined: Ray itself would try for minutes, and cannot be interrupted."""
ASKED_EVERY = 0.2
"""The seconds between checks for a stop by the user, and so the time until a stop is noticed."""
TOLD_EVERY = 0.5
"""The seconds between two progress reports of a group."""
COUNTED_EVERY = 2.0
"""The seconds between two counts of the cluster's processors."""
STATISTICS = "RAY_USAGE_STATS_ENABLED"


class Ray:
    """Engine on a Ray cluster: each group is a task that takes one processor, or one GPU if the device is a GPU.

    The workload is put into the object store once; every worker process reads its arrays there, without a copy. A group
    whose worker or node is lost is started again elsewhere, a few times at most. An error of the work itself is raised
    unchanged. An existing Ray session is used and left running, and so is a cluster at an address.

    Args:
        address: The address of the cluster's head, ``HOST:PORT``, or ``"auto"`` for the one that runs on this machine.
            By default it is taken from ``RAY_ADDRESS``; if that is not set, a cluster on this machine alone is started
            and ended with the run.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError("engine: 'ray' is not installed: pip install lossworks[ray]")
        self.address = address or os.environ.get("RAY_ADDRESS") or None
        if self.address is not None:
            _check_address(self.address)

    def run(
        self,
        workload: Workload,
        numbers: Sequence[int],
        *,
        tell: Callable[[int, float], None],
        begin: Callable[[], bool],
        stop: Callable[[], bool],
    ) -> Generator[tuple[int, Results]]:
        """See :class:`lossworks.runs.engines.Engine`."""
        if not numbers:
            return
        with _session(self.address):
            crew = _Crew(workload, numbers)
            try:
                yield from crew.finished(tell, begin, stop)
            finally:
                crew.cancel(list(crew.streams))


class _Crew:
    """The tasks of one run, both running and waiting; each task is a stream of messages from its worker."""

    def __init__(self, workload: Workload, numbers: Sequence[int]) -> None:
        self.workload, self.waiting = workload, deque(numbers)
        self.shipped = [_put(workload)]
        self.resource = "GPU" if workload.device.type == "cuda" else "CPU"
        self.streams: dict[Any, int] = {}
        self.places: dict[int, str] = {}
        self.lost: Counter[int] = Counter()
        self.notes: dict[int, list[str]] = {}
        self.counted, self.room = 0.0, 1
        import ray

        options = {"num_returns": "streaming", "max_retries": 0, "num_cpus": 1}
        if self.resource == "GPU":
            options["num_gpus"] = 1
            if not ray.cluster_resources().get("GPU"):
                raise InputError("device: no node of the Ray cluster has a GPU; use --device cpu")
        self.task = ray.remote(_stream).options(**options)

    def finished(
        self, tell: Callable[[int, float], None], begin: Callable[[], bool], stop: Callable[[], bool]
    ) -> Iterator[tuple[int, Results]]:
        """See :class:`Ray`; if the run is stopped, tasks may still be running when this ends."""
        import ray

        while (self.waiting or self.streams) and not stop():
            unbegun = [stream for stream, number in self.streams.items() if number not in self.places]
            if (self.waiting or unbegun) and not begin():
                self.waiting.clear()
                self.cancel(unbegun)
            self._submit()
            ready = ray.wait(list(self.streams), timeout=ASKED_EVERY)[0] if self.streams else []
            for stream in ready:
                results = self._heard(stream, tell)
                if results is not None:
                    yield results

    def cancel(self, streams: Sequence[Any]) -> None:
        """Cancel these tasks; those that are at work end at their next evaluation."""
        import ray

        for stream in streams:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(stream)
            self.streams.pop(stream)

    def _submit(self) -> None:
        """Keep two groups submitted for each processor, so that no processor waits for this process."""
        import ray

        if self.waiting and time.monotonic() - self.counted > COUNTED_EVERY:
            self.room = max(2 * int(ray.cluster_resources().get(self.resource, 0)), 1)
            self.counted = time.monotonic()
        while self.waiting and len(self.streams) < self.room:
            number = self.waiting.popleft()
            self.streams[self.task.remote(self.shipped, number, _software())] = number

    def _heard(self, stream: Any, tell: Callable[[int, float], None]) -> tuple[int, Results] | None:
        """Read one message of a stream; return the group's results if it was the last message."""
        import ray

        number = self.streams[stream]
        try:
            kind, said = ray.get(next(stream))
        except ray.exceptions.RayTaskError as error:
            self.streams.pop(stream)
            raise _cause(error) from error
        except (ray.exceptions.RayError, StopIteration) as error:
            self.streams.pop(stream)
            self._again(number, error)
            return None
        if kind == "begun":
            self.places[number] = said
        elif kind == "at":
            tell(number, said)
        else:
            self.streams.pop(stream)
            said[0].setdefault("notes", []).extend(self.notes.pop(number, []))
            return number, said
        return None

    def _again(self, number: int, error: BaseException) -> None:
        """Put a lost group first in the queue, unless it was lost too often."""
        self.lost[number] += 1
        name, place = self.workload.units[number].name, self.places.pop(number, "its node")
        reason = type(error).__name__
        if self.lost[number] >= ATTEMPTS:
            raise InputError(
                f"engine: group {number} ({name}) lost its worker {ATTEMPTS} times, at last on {place} ({reason}); "
                f"what was committed is kept, and a run with a folder goes on with --resume"
            ) from error
        self.notes.setdefault(number, []).append(
            f"group {number} ({name}) was lost with its worker on {place} ({reason}) and was done again, which changes "
            f"no number"
        )
        self.waiting.appendleft(number)


# On the worker

_received: dict[Any, Workload] = {}
"""The workload that this worker process has read from the object store."""


def _stream(shipped: Sequence[Any], number: int, software: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The task: it yields where it runs, then its progress from time to time, and finally its results."""
    import ray

    context = ray.get_runtime_context()
    yield "begun", f"node {context.get_node_id()[:8]}, process {os.getpid()}"
    here = _software()
    if differ := [name for name in software if software[name] != here.get(name)]:
        there, wanted = (", ".join(f"{name} {of.get(name)}" for name in differ) for of in (here, software))
        raise InputError(
            f"engine: a node of the cluster has {there}, this machine has {wanted}, which may give other numbers: "
            f"install the same on all nodes"
        )
    # torch imports this module at its first use, which would be in the thread that does the work: an import there has
    # been seen to wait forever in a worker process.
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    if shipped[0] not in _received:
        _received.clear()
        _received[shipped[0]] = ray.get(shipped[0])
    yield from _told(_received[shipped[0]], number)


def _told(workload: Workload, number: int) -> Iterator[tuple[str, Any]]:
    """Do the work in a thread of its own and yield its messages; the work ends soon if nobody listens any more."""
    said: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    unheard = threading.Event()

    def at_work() -> None:
        torch.set_num_threads(1)
        last = 0.0

        def tell(within: float) -> None:
            nonlocal last
            if time.monotonic() - last > TOLD_EVERY:
                last = time.monotonic()
                said.put(("at", within))

        try:
            free = budget(None, workload.device)
            share = None if free is None else free // (os.cpu_count() or 1)
            said.put(("done", workload.work(number, tell=tell, stop=unheard.is_set, memory=share)))
        except BaseException as error:
            said.put(("failed", error))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        thread = threading.Thread(target=at_work, name=f"group {number}", daemon=True)
        thread.start()
        try:
            while True:
                kind, what = said.get()
                if kind == "failed":
                    raise what
                yield kind, what
                if kind == "done":
                    return
        finally:
            unheard.set()
            thread.join()


@lru_cache
def _software() -> dict[str, str]:
    return versions()


# The session


@contextlib.contextmanager
def _session(address: str | None) -> Iterator[None]:
    """A connection to the cluster: the existing one, or a new one that is closed at the end."""
    import ray

    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise InputError(f"address {address!r}: this process is connected to the Ray cluster {here} already")
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _unprinted():
            try:
                _begin(address)
                yield
            finally:
                ray.shutdown()
    finally:
        with contextlib.suppress(ValueError, TypeError):  # only the main thread has signals
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Keep Ray from printing a lost node's log to stdout, where scripts read our JSON; Ray has no option for it."""
    worker = sys.modules["ray._private.worker"]
    before = getattr(worker, "_worker_logs_enabled", True)
    setattr(worker, "_worker_logs_enabled", False)  # noqa: B010  # another version may not have the name
    try:
        yield
    finally:
        setattr(worker, "_worker_logs_enabled", before)  # noqa: B010


def _begin(address: str | None) -> None:
    import ray

    options: dict[str, Any] = (
        {"address": address}
        if address
        else {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    )
    if address is not None:
        _try(address)
    with warnings.catch_warnings(), _quiet(own=address is None):
        warnings.simplefilter("ignore")
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        except Exception as error:
            where = _not_joined(address) if address else "engine: Ray cannot begin"
            raise InputError(f"{where} ({' '.join(str(error).split())[:300]})") from error


def _try(address: str) -> None:
    """Raise unless a process that can be killed joins the cluster in time."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        tried = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, address],
            capture_output=True,
            text=True,
            timeout=JOINED_WITHIN,
            check=False,
            start_new_session=True,  # so that Ctrl-C reaches this process alone
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{_not_joined(address)} (nothing after {JOINED_WITHIN:g} s)") from error
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise InputError(f"{_not_joined(address)} ({reason[:300]})")


def _not_joined(address: str) -> str:
    return f"address {address!r}: no Ray cluster can be joined there"


@contextlib.contextmanager
def _quiet(*, own: bool) -> Iterator[None]:
    """Restore the environment and Ray's logger at the end.

    A cluster that is started here sends no usage statistics of Ray, unless the user has allowed them.
    """
    logger = logging.getLogger("ray")
    level, before = logger.level, {name: os.environ.get(name) for name in (STATISTICS, "RAY_AUTH_MODE")}
    logger.setLevel(logging.ERROR)
    if own:
        os.environ.setdefault(STATISTICS, "0")
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_address(address: str) -> None:
    """Raise unless something listens at the address; an address that Ray itself finds is tried later."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"address must be HOST:PORT of the cluster's head (such as 10.0.0.1:6379) or 'auto', got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise InputError(
            f"address {address!r}: no Ray cluster answers there ({reason}); is its head up (ray start --head)?"
        ) from error


# What is sent to the workers


def _put(workload: Workload) -> Any:
    """Put the workload into the object store, with the user's own code, as workers may not have its files."""
    import ray

    modules = _own_modules(workload)
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        return ray.put(workload)
    except (TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"engine: your own code cannot be sent to a worker ({reason})") from error
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _own_modules(workload: Workload) -> list[ModuleType]:
    """The modules that hold the user's own code and are not installed packages."""
    names = {str(getattr(thing, "__module__", "")) for thing in workload.own_code()} - {"__main__"}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules and _is_own(sys.modules[name])]


def _is_own(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] == "lossworks" or not getattr(module, "__file__", None):
        return False
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]
    return not any(Path(str(module.__file__)).resolve().is_relative_to(folder) for folder in installed)


def _cause(error: Any) -> BaseException:
    """The error that the work raised, as it would have been raised in this process."""
    cause = error.cause
    if isinstance(cause, ModuleNotFoundError):
        return InputError(f"engine: a node of the cluster has no module {cause.name!r}: install the same on all nodes")
    return cause if isinstance(cause, BaseException) else RuntimeError(str(error))
