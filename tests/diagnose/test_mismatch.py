import numpy as np
import pytest
import torch

from lossworks.diagnose import objective_mismatch


def test_the_same_is_one_and_the_opposite_minus_one(generator):
    values = torch.randn(12, generator=generator)
    for sign in (1, -1):
        report = objective_mismatch(values, sign * values, resamples=50)
        for found in (report.pearson, report.spearman, report.kendall):
            assert (found.value, found.low) == pytest.approx((sign, sign))
            assert found.high == pytest.approx(sign)


def test_equals_the_definitions(generator):
    proxy, metric = torch.randn(2, 15, generator=generator, dtype=torch.float64)
    report = objective_mismatch(proxy, metric, resamples=200)
    ranks = torch.stack([proxy.argsort().argsort(), metric.argsort().argsort()]).double()
    signs = [torch.sign(v[:, None] - v[None]) for v in (proxy, metric)]
    assert report.pearson.value == pytest.approx(float(torch.corrcoef(torch.stack([proxy, metric]))[0, 1]))
    assert report.spearman.value == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))
    assert report.kendall.value == pytest.approx(float((signs[0] * signs[1]).sum()) / (15 * 14))
    assert all(c.low <= c.value <= c.high for c in (report.pearson, report.spearman, report.kendall))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="proxy must have shape"):
        objective_mismatch(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="metric must be finite and not all alike"):
        objective_mismatch(torch.arange(4.0), torch.ones(4))


def test_the_interval_is_that_of_the_resamples_percentiles(generator):
    proxy, metric = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    found = objective_mismatch(proxy, metric, resamples=300, seed=3, level=0.8).pearson
    draws = np.random.default_rng(3).integers(12, size=(300, 12))
    values = [np.corrcoef(proxy.numpy()[draw], metric.numpy()[draw])[0, 1] for draw in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [10, 90])))
