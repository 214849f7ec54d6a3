"""Temperature scaling finds the minimum that a solver finds, and stays sane where there is none."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lossworks.calibrate import TemperatureScaling
from lossworks.metrics import expected_calibration_error


@pytest.fixture
def overconfident(generator):
    """Logits three times too large for how their labels were drawn."""
    z = torch.randn(2000, 4, dtype=torch.float64, generator=generator) * 2
    return 3 * z, torch.multinomial(z.softmax(dim=1), 1, generator=generator).squeeze(1)


def solved(value) -> float:
    return math.exp(
        minimize_scalar(
            lambda u: float(value(math.exp(u))), bounds=(-7, 7), method="bounded", options={"xatol": 1e-10}
        ).x
    )


def test_classes_get_the_minimum_of_the_loss(overconfident):
    logits, target = overconfident
    found = TemperatureScaling(smoothing=0).fit(logits, target).temperature.item()
    assert found == pytest.approx(solved(lambda t: cross_entropy(logits / t, target)), rel=1e-5)
    assert found == pytest.approx(3, rel=0.1)


def test_one_logit_gets_the_minimum_of_the_loss(overconfident):
    logits, target = overconfident[0][:, 0], (overconfident[1] == 0)
    found = TemperatureScaling(smoothing=0).fit(logits, target).temperature.item()
    assert found == pytest.approx(
        solved(lambda t: binary_cross_entropy_with_logits(logits / t, target.double())), rel=1e-5
    )
    assert found == TemperatureScaling(smoothing=0).fit(logits, target.double()).temperature.item()


@pytest.mark.parametrize("rows", [5, 2000])
def test_smoothing_is_a_row_without_a_label_spread_over_all(overconfident, rows):
    logits, target = overconfident[0][:rows], overconfident[1][:rows]
    found = TemperatureScaling().fit(logits, target).temperature.item()
    wanted = solved(lambda t: cross_entropy(logits / t, target, label_smoothing=1 / (rows + 1)))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_calibration_error_falls_and_answers_stay(overconfident):
    logits, target = overconfident
    calibrated = TemperatureScaling().fit(logits[:1000], target[:1000])(logits[1000:])
    before, after = (expected_calibration_error(z.softmax(dim=1), target[1000:]) for z in (logits[1000:], calibrated))
    assert after < before / 3
    assert torch.equal(calibrated.argmax(dim=1), logits[1000:].argmax(dim=1))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rows_that_are_all_right_leave_as_much_doubt_as_one_row_carries(scale):
    logits = scale * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    target = torch.tensor([0, 1, 2, 0])
    right = TemperatureScaling().fit(logits, target)(logits).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(right, torch.full((4,), 1 - (2 / 3) / 5), rtol=1e-5, atol=0)
    exact = TemperatureScaling(smoothing=0).fit(logits, target).temperature.item()
    assert 0 < exact < 0.1 * scale


def test_logits_that_are_no_guide_end_near_uniform():
    logits, target = torch.tensor([5.0, -5.0, 5.0, -5.0]), torch.tensor([0, 1, 0, 1])
    calibrator = TemperatureScaling().fit(logits, target)
    assert calibrator(logits).abs().max() < 0.01


def test_constant_logits_keep_temperature_one():
    assert TemperatureScaling().fit(torch.full((3, 2), 7.0), torch.tensor([0, 1, 1])).temperature.item() == 1


def test_what_is_fitted_is_saved_and_copied(overconfident):
    fitted = TemperatureScaling().fit(*overconfident)
    fresh = TemperatureScaling()
    fresh.load_state_dict(fitted.state_dict())
    assert fresh.temperature == copy.deepcopy(fitted).temperature == fitted.temperature
    assert fitted(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_extreme_logits_are_safe():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4]])
    assert np.isfinite(TemperatureScaling().fit(logits, torch.tensor([0, 1, 1])).temperature.item())


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), r"logits must have shape .* with n >= 1, got \(0, 3\)"),
        (
            torch.tensor([1.0, torch.nan]),
            torch.tensor([0, 1]),
            "masked class, got NaN or Inf in row 1",
        ),
        (torch.zeros(2), torch.tensor([0.0, 0.5]), "target must be 0 or 1, got 0.5 in row 1"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"target must be in \[0, 2\), got 2 in row 1"),
    ],
)
def test_bad_input_is_named(logits, target, message):
    with pytest.raises(ValueError, match=message):
        TemperatureScaling().fit(logits, target)


def test_negative_smoothing_is_refused():
    with pytest.raises(ValueError, match="smoothing must be finite and >= 0, got -1"):
        TemperatureScaling(smoothing=-1)


def test_classes_masked_in_some_rows_have_no_part_in_the_minimum(overconfident):
    logits, target = overconfident
    logits = logits.masked_fill(
        (torch.arange(4) == (target[:, None] + 1) % 4) & (torch.arange(2000) % 3 == 0)[:, None], -math.inf
    )
    found = TemperatureScaling(smoothing=0).fit(logits, target).temperature.item()
    assert found == pytest.approx(solved(lambda t: cross_entropy(logits / t, target)), rel=1e-5)
    low = logits.masked_fill(logits.isneginf(), -1e9)
    assert found == pytest.approx(solved(lambda t: cross_entropy(low / t, target)), rel=1e-5)
    with pytest.raises(ValueError, match="must not mask a row's own label, that of row 0 is -inf"):
        TemperatureScaling().fit(logits, (target + 1) % 4)
