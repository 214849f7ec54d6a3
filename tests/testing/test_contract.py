"""The contract: one test item of each part, setting and check, so that a failure names all three."""

import inspect
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lossworks.catalog import parts
from lossworks.losses import CrossEntropyLoss
from lossworks.roles import Wrapper
from lossworks.testing.checks.losses import compiles
from lossworks.testing.contract import CONTRACT, row_of, run_check
from lossworks.testing.inputs import driven
from lossworks.testing.subjects import subject_of
from tests.optim.updates import UPDATES


def _subjects():
    """Every part in every setting; what is spread over processes gets them when it is run."""
    for name, entry in parts().items():
        for number, setting in enumerate(driven(entry.part)):
            update = UPDATES.get(name)
            yield name, number, subject_of(entry.part, setting, update=update, ranks=lambda: pytest.fail("no ranks"))


SUBJECTS = list(_subjects())
SKIPPED: dict[tuple[str, int, str], str] = {}


def _applies(name, number, subject, check_name, check):
    with torch.random.fork_rng(devices=[]):
        reason = check.reason(subject)
    if reason is not None:
        SKIPPED[name, number, check_name] = reason
    return reason is None


ITEMS = [
    pytest.param(subject, check_name, id=f"{name}-{number}-{check_name}")
    for name, number, subject in SUBJECTS
    for check_name, check in row_of(subject.part).checks.items()
    if _applies(name, number, subject, check_name, check)
]


@pytest.fixture(scope="module", autouse=True)
def _all_is_loaded(two_ranks):
    """What the compiler, scikit-learn and the processes take to begin with is not a part's time."""
    import sklearn.linear_model
    import sklearn.mixture  # noqa: F401

    two_ranks.send(lambda: [__import__(name).__name__ for name in ("torch.distributed.tensor", "lossworks.testing")])
    compiles(CrossEntropyLoss())
    two_ranks.receive()


@pytest.mark.parametrize(("subject", "check"), ITEMS)
def test_keeps(subject, check, request):
    given = replace(subject, ranks=lambda: request.getfixturevalue("two_ranks")) if "sharded" in check else subject
    assert run_check(given, check, row_of(subject.part).checks[check]) == "passed"


def test_every_reason_says_something_and_every_check_applies_to_some_part():
    assert all(len(reason) > 10 for reason in SKIPPED.values())
    ran = {(row_of(item.values[0].part).role, item.values[1]) for item in ITEMS}
    never = {(row.role, check) for row in CONTRACT for check in row.checks if (row.role, check) not in ran}
    assert never <= {("penalty", "reads_the_features"), ("penalty", "features_are_passed")}


def test_every_role_has_its_checks():
    counts = {row.role: len(row.checks) for row in CONTRACT}
    assert min(counts.values()) >= 13, counts
    roles = Counter(row_of(subject.part).role for _, _, subject in SUBJECTS)
    assert set(roles) == set(counts), "a role without a part"


def test_every_wrapper_has_its_update_written_out():
    wrappers = {
        name for name, entry in parts().items() if inspect.isclass(entry.part) and issubclass(entry.part, Wrapper)
    }
    assert wrappers == set(UPDATES), "write its update out in tests/optim/updates.py"


@pytest.mark.parametrize(
    ("name", "settings"), [(n, e.part.settings) for n, e in parts().items() if hasattr(e.part, "settings")]
)
def test_declares_at_most_four_settings(name, settings):
    assert 1 <= len(settings) <= 4


def test_every_role_has_an_example_of_its_own():
    first = {row_of(subject.part).role: subject for _, _, subject in reversed(SUBJECTS)}
    for row in CONTRACT:
        with torch.random.fork_rng(devices=[]):
            assert row.example(first[row.role]) is not None, row.role
