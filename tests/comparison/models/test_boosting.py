import numpy as np
import torch

from lossworks.comparison.models.boosting import boosted_outputs
from lossworks.comparison.plan import Split
from lossworks.comparison.read.dataset import read


def test_classes_nearly_as_many_as_rows_are_fitted_without_a_warning():
    labels = [f"day {row % 25}" for row in range(40)]
    dataset = read({"a": np.arange(40.0), "y": labels}, target="y", columns={"y": "category"})
    rows = np.arange(40)
    split = Split(0, 0, fit=rows[:25], inner=rows[25:30], test=rows[30:])
    found = boosted_outputs(dataset, torch.arange(40.0)[:, None], split, seed=0)
    assert found.shape == (10, 25)
    assert bool((found.exp().sum(dim=1) - 1).abs().max() < 1e-6)
