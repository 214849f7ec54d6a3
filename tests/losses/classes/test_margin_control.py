import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.losses import MarginControlLoss


@pytest.fixture
def rows(generator):
    return torch.randn(9, 4, generator=generator, dtype=torch.float64), torch.arange(9) % 4


def test_equals_its_formula(rows):
    z, y = rows
    sureness = sum(p**2 for row in z.tolist() for p in torch.tensor(row).double().softmax(0).tolist())
    expected = cross_entropy(z, y) + 0.3 * torch.tensor(1 + sureness, dtype=torch.float64).log()
    assert_close(MarginControlLoss(0.3)(z, y), expected)


def test_without_a_price_is_cross_entropy(rows):
    assert_close(MarginControlLoss(0.0)(*rows), cross_entropy(*rows))


def test_the_price_is_lowest_for_uniform_answers_and_highest_for_sure_ones():
    def price(z):
        y = torch.zeros(len(z), dtype=torch.int64)
        return float(MarginControlLoss(1.0)(z, y) - cross_entropy(z, y))

    uniform, sure = torch.zeros(6, 3, dtype=torch.float64), torch.eye(6, 3, dtype=torch.float64) * 1e3
    sure[3:, 0] = 1e3
    assert price(uniform) == pytest.approx(torch.tensor(1 + 6 / 3).log())
    assert price(sure) == pytest.approx(torch.tensor(1 + 6.0).log())


def test_ignored_rows_do_not_count_in_the_price(rows):
    z, y = rows
    y = y.clone()
    y[[1, 5]] = -100
    kept = y >= 0
    assert_close(MarginControlLoss()(z, y), MarginControlLoss()(z[kept], y[kept]))
