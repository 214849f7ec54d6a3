import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def run_ranks() -> Callable[[str, Path], None]:
    """Run a file as a script in two processes that can find each other, until both end well."""

    def run(script: str, folder: Path, *, ranks: int = 2, seconds: float = 120) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        logs = [folder / f"{rank}.log" for rank in range(ranks)]
        processes = []
        for rank, log in enumerate(logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as out:
                started = subprocess.Popen(
                    [sys.executable, script, str(folder)], env=os.environ | shared | own, stdout=out, stderr=out
                )
            processes.append(started)
        try:
            ended = [process.wait(timeout=seconds) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert not any(ended), "\n".join(log.read_text() for log in logs)

    return run
