"""``python -m pytest tests/fuzz --fuzz-examples 10000`` drives every entry point at length, a plain run briefly."""

import json
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

BRIEFLY = 20


def pytest_addoption(parser):
    parser.addoption("--fuzz-examples", type=int, default=BRIEFLY, help="inputs for each entry point")
    parser.addoption("--fuzz-seed", type=int, default=0, help="added to the seed of each entry point")
    parser.addoption(
        "--fuzz-record",
        default=None,
        help="a file with a line of JSON an entry point that stood, which is then skipped",
    )


@pytest.fixture
def fuzz(request):
    """Drive one entry point: ``fuzz(strategy, check)``, where ``check(input)`` says what became of it.

    ``alike`` is of one that refuses nothing, or accepts hardly anything.
    """
    count = request.config.getoption("--fuzz-examples", BRIEFLY)
    added = request.config.getoption("--fuzz-seed", 0)
    record = request.config.getoption("--fuzz-record", None)
    name = request.node.nodeid.rpartition("::")[2].removeprefix("test_")
    seed = (zlib.crc32(name.encode()) + added) % 2**32
    if record and _stood(Path(record), name, seed, count):
        pytest.skip(f"stood {count} inputs by {record}")

    def drive(strategy, check, *, alike=False):
        seen = Counter()

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        @hypothesis.given(strategy)
        def run(given):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                seen[check(given)] += 1

        run()
        if count >= 1000 and not alike:
            assert len(seen) > 1 or seen.total() < count, f"every input was {next(iter(seen))}: nothing is being tried"
        if record:
            line = {"entry": name, "seed": seed, "asked": count, "inputs": seen.total()} | dict(sorted(seen.items()))
            with Path(record).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return drive


def _stood(record: Path, name: str, seed: int, count: int) -> bool:
    """Whether the record says that this entry point stood so many inputs of this seed."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return any(
        line["entry"] == name and line["seed"] == seed and line["asked"] >= count for line in map(json.loads, lines)
    )
