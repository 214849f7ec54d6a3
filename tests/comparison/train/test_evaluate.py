"""The evaluation of a trained model: it is calibrated on inner rows, and scored on test rows."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from lossworks.comparison.read.dataset import read
from lossworks.comparison.train.evaluate import evaluate
from lossworks.metrics.registry import METRICS


def log_loss(logits: np.ndarray, target: np.ndarray, temperature: float) -> float:
    return -float(log_softmax(logits / temperature, axis=1)[np.arange(len(target)), target].mean())


def test_the_temperature_is_the_best_of_the_inner_rows_and_reads_no_test_row():
    rng = np.random.default_rng(0)
    dataset = read((rng.normal(size=(90, 2)), np.arange(90) % 3))
    rows, test = np.arange(60), np.arange(60, 90)
    logits = rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[dataset.target]
    logits[test] *= 8  # over-confident, which only the test rows show
    outputs = torch.from_numpy(logits)
    found = evaluate(dataset, METRICS["accuracy"], inner=(rows, outputs[rows]), test=(test, outputs[test]))

    def smoothed(temperature: float) -> float:
        """The log-loss of the inner rows, with the weight of one row spread over the classes."""
        logs = log_softmax(logits[rows] / temperature, axis=1)
        return -float((60 * np.eye(3)[dataset.target[rows]] + 1 / 3).ravel() @ logs.ravel())

    best = minimize_scalar(smoothed, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8})
    assert found["temperature"] == pytest.approx(best.x, rel=1e-5)
    wanted = log_loss(logits[test], dataset.target[test], found["temperature"])
    assert found["metrics"]["log_loss"] == pytest.approx(wanted, rel=1e-9)
    other = dataset.target[test][::-1].copy()
    dataset.target[test] = other
    again = evaluate(dataset, METRICS["accuracy"], inner=(rows, outputs[rows]), test=(test, outputs[test]))
    assert again["temperature"] == found["temperature"]
