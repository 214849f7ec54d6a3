import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.embed import infonce_loss, nt_xent_loss


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
    with pytest.raises(ValueError, match="second has NaN in row 1"):
        nt_xent_loss(torch.ones(2, 3), torch.tensor([[1.0, 1.0, 1.0], [1.0, torch.nan, 1.0]]))


def test_infonce_is_cross_entropy_on_the_partner(generator):
    features, partner = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    scores = F.cosine_similarity(features[:, None], partner[None], dim=2) / 0.3
    wanted = F.cross_entropy(scores, torch.arange(6), reduction="none")
    assert_close(infonce_loss(features, partner, 0.3), wanted)
    lengths = torch.rand(6, 1, generator=generator, dtype=torch.float64) + 0.1
    assert_close(infonce_loss(lengths * features, lengths.flip(0) * partner, 0.3), wanted)
    order = torch.randperm(6, generator=generator)
    assert_close(infonce_loss(features[order], partner[order], 0.3), wanted[order])


def test_infonce_is_log_n_where_all_are_alike_and_has_bounds(generator):
    alike = torch.ones(5, 3, dtype=torch.float64)
    assert_close(infonce_loss(alike, alike), torch.full((5,), math.log(5), dtype=torch.float64))
    apart = torch.eye(5, dtype=torch.float64)
    assert (infonce_loss(apart, apart, 0.02) < 1e-9).all()
    for _ in range(20):
        value = infonce_loss(*torch.randn(2, 5, 3, generator=generator), 0.2)
        assert bool(((value >= 0) & (value <= math.log(5) + 2 / 0.2)).all())
    worst = infonce_loss(-apart, apart, 0.2)
    assert_close(worst, torch.full((5,), math.log(math.exp(-5) + 4) + 5, dtype=torch.float64))


def test_infonce_says_what_is_wrong():
    with pytest.raises(ValueError, match="partner must have the shape of features"):
        infonce_loss(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"features must have shape \(n, d\)"):
        infonce_loss(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="tau must be finite and > 0"):
        infonce_loss(torch.ones(2, 3), torch.ones(2, 3), 0.0)


def test_rows_of_more_than_one_axis_are_refused():
    with pytest.raises(ValueError, match=r"first must have shape \(n, d\), got \(2, 3, 4\)"):
        nt_xent_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
