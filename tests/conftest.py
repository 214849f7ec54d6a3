import os
from collections.abc import Iterator

import pytest
import torch

from lossworks.testing import Ranks


@pytest.fixture(autouse=True, scope="session")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("LOSSWORKS_TEST_THREADS", "1")))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def three_ranks() -> Iterator[Ranks]:
    with Ranks(3) as ranks:
        yield ranks
