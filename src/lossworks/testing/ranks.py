"""Processes that share a batch: a gloo group on this machine that runs what it is sent."""

import contextlib
import datetime
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

__all__ = ["Ranks"]

START_SECONDS = 120.0


class Ranks:
    """A group of processes, one a rank, each waiting for functions to run; a context manager that leaves none behind.

    They meet through a file, so that no port can be taken, and end by themselves when this process does, or when a rank
    fails: the group is of no use then, and the next call starts another. Functions and
    arguments may be local: they are sent by value where they can't be imported.

    Args:
        size: How many ranks.
        timeout: Seconds that a collective, and the answer to a call, may take.

    >>> def tripled(number):
    ...     import torch.distributed as dist
    ...     return 3 * number + dist.get_rank()
    >>> with Ranks(2) as ranks:
    ...     ranks.call(tripled, 5)
    [15, 16]
    """

    def __init__(self, size: int, timeout: float = 120.0) -> None:
        self.size, self.timeout = size, timeout
        self._workers: list[subprocess.Popen[bytes]] = []
        self._start()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lossworks-ranks-", ignore_cleanup_errors=True)
        self._started = False
        folder = Path(self._folder.name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        code = "from lossworks.testing.ranks import work; work()"
        for rank in range(self.size):
            arguments = [str(rank), str(self.size), str(folder / "store"), str(self.timeout)]
            with (folder / f"errors-{rank}").open("wb") as errors:
                self._workers.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code, *arguments],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env=environment,
                    )
                )
        self._answers: list[queue.Queue[tuple[bool, Any]]] = [queue.Queue() for _ in self._workers]
        self._readers = [
            threading.Thread(target=_read, args=(worker.stdout, answers), daemon=True)
            for worker, answers in zip(self._workers, self._answers, strict=True)
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns on each rank, where it finds ``torch.distributed.group.WORLD`` set up."""
        self.send(function, *arguments)
        return self.receive()

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have all ranks begin; :meth:`receive` waits for them. Ranks that a failure ended are started anew."""
        if not self._workers:
            self._start()
        # scikit-learn's joblib brings it: pickle, and by value what pickle can't send.
        from joblib.externals.loky.backend.reduction import dumps

        message = bytes(dumps((function, arguments)))
        for worker in self._workers:
            assert worker.stdin is not None
            with contextlib.suppress(OSError):  # it has ended, and receive says why
                worker.stdin.write(message)
                worker.stdin.flush()

    def receive(self) -> list[Any]:
        """The answers to what was sent.

        Raises:
            RuntimeError: the function failed on a rank, which is named with its traceback, or a rank has ended.
            TimeoutError: a rank has not answered in time.
        """
        results, failed = [], []
        for rank, answers in enumerate(self._answers):
            try:
                fine, answer = answers.get(timeout=self.timeout + (0 if self._started else START_SECONDS))
            except queue.Empty:
                self.close()
                raise TimeoutError(f"rank {rank} of {self.size} has not answered in {self.timeout:g} s") from None
            if fine:
                results.append(answer)
            else:
                failed.append((rank, answer or self._last_words(rank)))
        if failed:
            self.close()
            # The rank that broke first says why; the others that it broke the connection.
            rank, why = min(failed, key=lambda failure: ("onnection" in failure[1], failure[0]))
            raise RuntimeError(f"rank {rank} of {self.size} failed:\n{why}")
        self._started = True
        return results

    def close(self) -> None:
        """End the processes; those that don't end by themselves are killed."""
        for worker in self._workers:
            assert worker.stdin is not None
            with contextlib.suppress(OSError):
                worker.stdin.close()
        for worker in self._workers:
            try:
                worker.wait(5 if self._started else 0.1)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for reader, worker in zip(self._readers, self._workers, strict=True):
            reader.join(5)
            assert worker.stdout is not None
            worker.stdout.close()
        self._workers, self._readers = [], []
        self._folder.cleanup()

    def _last_words(self, rank: int) -> str:
        errors = Path(self._folder.name) / f"errors-{rank}"
        text = errors.read_text(errors="replace") if errors.exists() else ""
        return text[-2000:] or f"it ended with exit code {self._workers[rank].poll()}"


def _read(stream: Any, answers: "queue.Queue[tuple[bool, Any]]") -> None:
    """Pass on a worker's answers until it ends, and then that it has."""
    try:
        while True:
            answers.put(pickle.load(stream))
    except (EOFError, OSError, ValueError, pickle.UnpicklingError):
        answers.put((False, ""))


def work() -> None:
    """Be one rank: run what comes in on standard input until it closes."""
    rank, size, store, timeout = sys.argv[1:]
    # What the functions print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=int(rank),
        world_size=int(size),
        timeout=datetime.timedelta(seconds=float(timeout)),
    )
    fine = True
    while fine:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        except Exception:
            fine, answer = False, traceback.format_exc()
        else:
            try:
                answer = function(*arguments)
            except Exception:
                # Once a rank has left a collective out the group is of no use: ending tells the others.
                fine, answer = False, traceback.format_exc()
        pickle.dump((fine, answer), answers)
        answers.flush()
    os._exit(0)
