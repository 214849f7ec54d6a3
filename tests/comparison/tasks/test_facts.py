"""What a task reads of the target for parts that ask for it, and what it sums up over models."""

import numpy as np
import pytest

from lossworks.comparison.tasks.classes import _mean_recall
from lossworks.comparison.tasks.real import Real


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([-1.0, 1.0], -1.2, 1.2),
        ([9.0, 11.0], -1.2, 1.2),
        ([0.0] * 3 + [4.0], -1 / 3**0.5 - 0.4 / 3**0.5, 3**0.5 + 0.4 / 3**0.5),
        ([0.0] * 99 + [1.0], -((0.01 / 0.99) ** 0.5) - 0.1 / 0.0099**0.5, 6.0),
        ([0.0] * 99 + [-1.0], -6.0, (0.01 / 0.99) ** 0.5 + 0.1 / 0.0099**0.5),
        ([3.0, 3.0], -1.0, 1.0),
    ],
)
def test_the_range_of_a_real_target_has_a_tenth_of_room_within_six_deviations(values, low, high):
    facts = Real().facts(np.array(values), 0)
    assert (facts["v_min"].item(), facts["v_max"].item()) == pytest.approx((low, high), rel=1e-6)


def test_the_recall_of_a_class_is_the_mean_over_the_models_that_met_it():
    met = [{"recall": [0.5, None, None]}, {"recall": [1.0, 0.25, None]}]
    assert _mean_recall(met, 3) == [0.75, 0.25, None]
