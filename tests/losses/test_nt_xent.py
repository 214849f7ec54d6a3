import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.losses import nt_xent_loss


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_is_cross_entropy_on_the_other_view(temperature, generator):
    first, second = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    views = F.normalize(torch.cat([first, second]), dim=1)
    scores = (views @ views.T / temperature).fill_diagonal_(-math.inf)
    wanted = F.cross_entropy(scores, torch.arange(10).roll(5))
    assert_close(nt_xent_loss(first, second, temperature), wanted)
    assert_close(nt_xent_loss(second, first, temperature), wanted)


def test_its_floor_is_0_and_one_row_has_none(generator):
    views = torch.eye(4, dtype=torch.float64)
    assert nt_xent_loss(views, views, 0.02) < 1e-9
    one = torch.randn(1, 3, generator=generator)
    assert nt_xent_loss(one, -one) == 0


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="second must have the shape of first"):
        nt_xent_loss(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"first must have shape \(n, d\)"):
        nt_xent_loss(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        nt_xent_loss(torch.ones(2, 3), torch.ones(2, 3), 0.0)
