import pytest
import torch
from torch.testing import assert_close

from lossworks.perturb import GaussianNoise


def risk(x):
    return x.pow(2).sum(1)


def test_has_the_moments_it_says():
    noise = GaussianNoise(0.5, generator=torch.Generator().manual_seed(0))(risk, torch.zeros(20_000, 5))
    assert_close(noise.mean(), torch.tensor(0.0), atol=0.01, rtol=0)
    assert_close(noise.std(), torch.tensor(0.5), atol=0.01, rtol=0)


def test_equals_tikhonov_to_second_order():
    """E l(x + s e) = l(x) + s^2/2 tr l''(x), exact for a quadratic: tr l'' = 2 d."""
    x, std = torch.ones(200_000, 3, dtype=torch.float64), 0.3
    noisy = risk(GaussianNoise(std, generator=torch.Generator().manual_seed(0))(risk, x)).mean()
    assert_close(noisy, risk(x)[0] + std**2 * 3, atol=0.01, rtol=0)


def test_rests_in_eval_mode():
    x = torch.ones(2, 3)
    assert_close(GaussianNoise(1.0).eval()(risk, x), x)


def test_the_same_seed_draws_the_same_noise():
    torch.manual_seed(3)
    first = GaussianNoise(1.0)(risk, torch.zeros(4, 2))
    torch.manual_seed(3)
    assert_close(GaussianNoise(1.0)(risk, torch.zeros(4, 2)), first, atol=0, rtol=0)


def test_a_bad_std_is_named():
    with pytest.raises(ValueError, match="std must be finite and >= 0"):
        GaussianNoise(-1.0)
