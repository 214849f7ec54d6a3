"""What the results draw, read back from the axes."""

import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from numpy.testing import assert_allclose

from lossworks.diagnose import (
    FoundationModelRobustness,
    OracleAttack,
    PowerLaw,
    closed_loop_rollout,
    objective_mismatch,
)

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    pyplot.close("all")


def _lines(ax):
    return [np.asarray(line.get_data(), dtype=float) for line in ax.lines]


def test_the_law_goes_through_errors_that_follow_it():
    eps = torch.tensor([0.4, 0.1, 0.2, 0.05])
    error = 0.5 * eps**1.5
    error[3] = 0.0
    ax = PowerLaw(1.5, 0.5, 1.0).plot(eps, error)
    measured, law = _lines(ax)
    assert_allclose(measured, [eps[:3], error[:3]])
    assert_allclose(law, [[0.05, 0.1, 0.2, 0.4], 0.5 * np.array([0.05, 0.1, 0.2, 0.4]) ** 1.5], rtol=1e-6)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="error must have the shape of eps"):
        PowerLaw(1.5, 0.5, 1.0).plot(eps, error[:2])


def test_the_coefficients_stand_in_their_intervals():
    proxy, metric = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0])
    report = objective_mismatch(proxy, metric)
    ax = report.plot()
    (spans,) = ax.collections
    found = (report.kendall, report.spearman, report.pearson)
    assert_allclose([segment[:, 0] for segment in spans.get_segments()], [[each.low, each.high] for each in found])
    assert_allclose(ax.lines[-1].get_xdata(), [each.value for each in found])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["kendall", "spearman", "pearson"]


def test_each_state_has_its_mean_and_its_band():
    run = closed_loop_rollout(lambda s: -s / 2, lambda s, a: s + a, torch.tensor([[8.0, 0.0], [4.0, 2.0]]), 3)
    ax = run.plot()
    assert_allclose([line[1] for line in _lines(ax)], [[6, 3, 1.5, 0.75], [1, 0.5, 0.25, 0.125]])
    highest = [band.get_paths()[0].vertices[:, 1].max() for band in ax.collections]
    assert_allclose(highest, [8, 2])


def test_bars_are_as_long_as_what_they_count():
    ax = OracleAttack(torch.zeros(4, 2), torch.tensor([0, 2, 2, 3])).plot()
    assert [bar.get_height() for bar in ax.patches] == [1, 0, 2, 1]
    ax = FoundationModelRobustness(0.5, 0.8, 0.4, 3).plot()
    assert [bar.get_width() for bar in ax.patches] == [0.4, 0.8]


def test_it_draws_where_it_is_told_and_says_what_it_needs(monkeypatch):
    ax = pyplot.subplots()[1]
    robust = FoundationModelRobustness(0.5, 0.8, 0.4, 3)
    assert robust.plot(ax) is ax
    with pytest.raises(TypeError, match="ax must be matplotlib Axes or None, got str"):
        robust.plot("here")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install lossworks\[plot\]"):
        robust.plot()
