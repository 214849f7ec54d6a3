"""What random inputs once found (docs/fuzzing.md), each as the plainest case of its kind."""

import struct
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import lossworks as lw
from lossworks import losses, metrics, penalties, perturb, verdict, weights
from lossworks.calibrate import TemperatureScaling
from lossworks.catalog import find, show
from lossworks.checks import check_bool, shown
from lossworks.comparison import Encoder, InputError, read
from lossworks.metrics import stacked
from lossworks.objectives import DenoisedSmoothingObjective, RSSObjective
from lossworks.roles import Loss
from lossworks.weights import SmallLossWeights

X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
SPARSE = torch.eye(3).to_sparse()
FLOAT8 = torch.zeros(4, 3).to(torch.float8_e4m3fn)
COUNTS = torch.tensor([3.0, 2.0, 1.0])


def refused(name, call, kind=(ValueError, TypeError)):
    """The call is refused in one short line that names the argument."""
    with pytest.raises(kind, match=name) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000


# Arguments of objectives and weightings


@pytest.mark.parametrize("target", [[0, 1, 2, 0], Y.numpy(), Y.bool(), Y.to_sparse(), Y.to(torch.float8_e4m3fn)])
@pytest.mark.parametrize(
    "objective", [lambda: RSSObjective(), lambda: DenoisedSmoothingObjective(torch.nn.Linear(3, 3), 0.1)]
)
def test_targets_that_are_no_classes(objective, target):
    refused("target", lambda: objective()(torch.nn.Linear(3, 3), X, target))


def test_weightings_of_what_is_no_row():
    refused("losses", lambda: SmallLossWeights(4)(X[:, :1], index=torch.arange(4)[:, None]))
    refused("step_size", lambda: weights.GroupDRO(3, step_size=np.ones(3)))


def test_an_ascent_from_one_number_and_from_rows_of_one():
    refused("x", lambda: perturb.PricedAscent()(lambda x: x, torch.tensor(1.0)))
    assert perturb.PricedAscent()(lambda x: x, torch.zeros(3)).shape == (3,)


# Arguments of losses


@pytest.mark.parametrize("make", [losses.PseudoHuberLoss, losses.TukeyBiweightLoss])
def test_a_scale_whose_square_is_no_number(make):
    assert make(1.5e154)(torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)).isfinite()


@pytest.mark.parametrize(
    "output", [None, 1.5, [[0.0, 1.0]], np.zeros((4, 3)), FLOAT8, X.to_sparse(), X.to(torch.complex64)]
)
@pytest.mark.parametrize("loss", [losses.CrossEntropyLoss(), losses.AdaptiveLDRLoss(4), losses.HLGaussLoss(-1.0, 1.0)])
def test_outputs_that_are_no_dense_floats(output, loss):
    refused("output", lambda: loss(output, Y, index=torch.arange(4)), TypeError)
    refused("output", lambda: loss.predict(output), TypeError)


@pytest.mark.parametrize("target", [None, 1, [0, 1, 2, 0], np.zeros(4, np.int64), Y.to_sparse()])
@pytest.mark.parametrize("loss", [losses.CrossEntropyLoss(), losses.AdaptiveLDRLoss(4), losses.HLGaussLoss(-1.0, 1.0)])
def test_targets_that_are_no_tensors(target, loss):
    refused("target", lambda: loss(X, target, index=torch.arange(4)), TypeError)


def test_complex_targets_of_two_classes_are_refused_without_a_warning():
    refused("target", lambda: losses.LogisticLoss()(X[:, 0], Y.to(torch.complex64)), TypeError)


def test_indices_that_are_no_tensors():
    refused("index", lambda: losses.AdaptiveLDRLoss(4)(X, Y, index=[0, 1, 2, 3]), TypeError)
    refused("index", lambda: weights.SampleWeights(torch.ones(4))(X[:, 0], index=[0, 1, 2, 3]), TypeError)


@pytest.mark.parametrize(
    "total", ["all", -1.0, float("nan"), float("inf"), torch.ones(2), torch.tensor(-3), SPARSE, 1j]
)
def test_totals_that_no_batch_has(total):
    refused("total", lambda: losses.CrossEntropyLoss()(X, Y, total=total))


@pytest.mark.parametrize("total", [4, 4.0, torch.tensor(4), torch.tensor(4.0)])
def test_totals_of_any_kind_of_number(total):
    loss = losses.CrossEntropyLoss()
    torch.testing.assert_close(loss(X, Y, total=total), loss(X, Y))


@pytest.mark.parametrize("index", [1.5, "none", None, True, 2**80])
def test_ignored_classes_that_are_no_ints(index):
    refused("ignore_index", lambda: losses.CrossEntropyLoss(ignore_index=index))


def test_a_prediction_is_checked_in_losses_of_ones_own_too():
    class Own(Loss):
        def predict(self, output):
            return output * 2

    refused("output", lambda: Own().predict([1.0]), TypeError)
    assert Own().predict(torch.ones(2)).tolist() == [2.0, 2.0]
    assert Own.predict.__name__ == "predict"


# Hyperparameters


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_ints_that_no_tensor_can_be_multiplied_by(value):
    refused("quantile|gamma|c", lambda: losses.PseudoHuberLoss(c=value), ValueError)
    refused("strength", lambda: penalties.WeightMagnitudePenalty(value), ValueError)


def test_sparse_numbers_are_no_hyperparameters():
    refused("alpha", lambda: losses.SymmetricCrossEntropyLoss(alpha=torch.tensor(0.5).to_sparse()), TypeError)


def test_options_that_are_tensors():
    refused("reduction", lambda: losses.CrossEntropyLoss(reduction=X), ValueError)
    refused("reduction", lambda: losses.CrossEntropyLoss(reduction="x" * 10**6), ValueError)


def test_learned_counts_are_taken_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.LogitAdjustedLoss(COUNTS.clone().requires_grad_())
        weights.ClassBalanced(COUNTS.clone().requires_grad_())


def test_a_thousand_counts_are_not_all_in_the_message():
    refused("class_counts", lambda: losses.LogitAdjustedLoss(-torch.ones(10_000)), ValueError)


def test_powers_that_are_no_floats():
    refused("q", lambda: losses.AsymmetricGeneralizedCrossEntropyLoss(a=1e300, q=5.0), ValueError)
    refused("q", lambda: losses.AsymmetricGeneralizedCrossEntropyLoss(a=3, q=2**31), ValueError)


def test_a_bound_with_a_huge_exponent_is_there_at_once():
    assert losses.comp_sum_h_consistency_bound(0.1, 2**62, 10) == 1.0
    assert losses.comp_sum_h_consistency_bound(0.0, 1e300, 10) == 0.0


@pytest.mark.parametrize("part", [losses.EnsLoss, losses.OneVsRestEnsLoss, perturb.GaussianNoise])
def test_generators_that_are_none(part):
    refused("generator", lambda: part(generator=False), TypeError)


def test_a_lambda_that_is_no_float32():
    refused("boxcox_lambda", lambda: losses.EnsLoss(1e300, 5), ValueError)


def test_bins_and_memories_beyond_any_machine():
    refused("num_bins", lambda: losses.HLGaussLoss(-1.0, 1.0, 2**31), ValueError)
    refused("num_samples", lambda: losses.AdaptiveLDRLoss(2**31), ValueError)
    refused("bins", lambda: metrics.reliability_bins(np.ones(2), np.ones(2, int), bins=2**31), ValueError)


def test_outputs_without_a_column_for_each_bin():
    refused("output", lambda: losses.TwoHotLoss(-1.0, 1.0, 5).predict(torch.zeros(4, 3)), ValueError)


@pytest.mark.parametrize("given", [None, 1, "abc", {1}])
def test_penalties_that_are_no_sequence(given):
    refused("penalties", lambda: lw.Objective(losses.CrossEntropyLoss(), penalties=given), TypeError)


@pytest.mark.parametrize("target", [None, [1, 0], True, torch.ones(2).to_sparse()])
def test_a_calibrator_s_targets_that_are_no_tensors(target):
    refused("target", lambda: TemperatureScaling().fit(torch.zeros(2), target), TypeError)


# Functions


def test_statistics_of_other_kinds():
    z = losses.z_loss_from_statistics
    refused("score_sum", lambda: z(X[:, 0], None, X[:, 0], 3), TypeError)
    spherical = losses.spherical_statistics
    weight, gram = torch.ones(5, 3), torch.ones(3, 3)
    refused("target", lambda: spherical(X, weight, Y + 9, gram, weight.sum(0)), ValueError)
    refused("target", lambda: spherical(X, weight, Y.to(torch.uint8), gram, weight.sum(0)), TypeError)
    refused("weight", lambda: spherical(X, weight.double(), Y, gram, weight.sum(0)), TypeError)


def test_scores_that_are_no_rows():
    refused("output", lambda: losses.normalize_scores(torch.zeros(3), None), ValueError)
    refused("margins", lambda: losses.pair_derivatives(torch.zeros(()), torch.zeros(())), ValueError)
    refused("margins", lambda: losses.sample_calibrated_derivatives(torch.zeros(())), ValueError)


@pytest.mark.parametrize("values", [np.array([1j]), torch.tensor([1j]), [10**400], ["a"], [[1], [1, 2]], SPARSE, None])
def test_metrics_of_what_are_no_real_numbers(values):
    refused("values", lambda: metrics.rmse(values, [1.0]), (TypeError, ValueError))
    refused("target", lambda: metrics.accuracy(np.ones(1), values), (TypeError, ValueError))


def test_classes_that_are_nan():
    refused("target", lambda: metrics.accuracy(np.ones(2), np.array([1.0, np.nan])), TypeError)


def test_two_infinities_are_in_no_order():
    refused("scores", lambda: metrics.auroc(np.full((2, 2), np.inf), np.array([0, 1])), ValueError)


def test_infinite_and_huge_values_have_infinite_errors():
    assert metrics.rmse([np.inf, 1.0], [1.0, 1.0]) == np.inf
    assert metrics.rmse([1e300], [-1e300]) == np.inf
    assert metrics.mae([1.7e308], [-1.7e308]) == np.inf
    assert metrics.r2([np.inf, 0.0], [1.0, 2.0]) == -np.inf
    refused("target", lambda: metrics.mae([1.0], [np.inf]), ValueError)


@pytest.mark.parametrize("given", [None, 3, "ab", [0.1, "x"], [0.1, float("nan")], [2.0]])
def test_p_values_that_are_none(given):
    refused("p_values", lambda: verdict.holm(given))


def test_rankings_of_nothing():
    refused("instance_scores", lambda: verdict.two_level_borda(None), TypeError)
    refused("instance_scores", lambda: verdict.two_level_borda([np.zeros(3)]), ValueError)
    refused("values", lambda: verdict.paired_test([[1.0], [2.0, 3.0]], test_fraction=0.5), TypeError)


def test_metrics_that_do_not_exist():
    refused("metric", lambda: metrics.find_metric("rsme"), ValueError)
    refused("metric", lambda: metrics.find_metric("rmse", [metrics.METRICS["accuracy"]]), ValueError)


@pytest.mark.parametrize("name", ["outputs", "target", "mask"])
def test_stacked_scores_of_other_shapes(name):
    given = {"outputs": torch.zeros(2, 4, 3), "target": torch.zeros(2, 4), "mask": torch.ones(2, 4, dtype=torch.bool)}
    assert stacked.accuracy(**given).tolist() == [1.0, 1.0]
    refused(name, lambda: stacked.accuracy(**{**given, name: None}), TypeError)
    refused(name, lambda: stacked.accuracy(**{**given, name: given[name][0]}))


def test_the_catalog_is_asked_in_words():
    refused("text", lambda: find(None), TypeError)
    refused("limit", lambda: find("noise", "many"), TypeError)
    refused("name", lambda: show(3), TypeError)
    with pytest.raises(KeyError) as caught:
        show("\n" * 10**5)
    assert len(caught.value.args[0]) < 300


# Checks


def test_values_in_messages_are_short_and_on_one_line():
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 10**6)) <= 100
    assert shown(10**5000) == "an int of 16610 bits"
    assert shown(torch.zeros(3, 4)) == "a tensor of shape (3, 4)"
    assert shown(2.5) == "2.5"


def test_switches():
    assert check_bool("learn", True) is True
    refused("learn", lambda: check_bool("learn", 1), TypeError)


# Tables


def table(rows=12, **columns):
    return {"a": list(range(rows)), "y": [0, 1] * (rows // 2), **columns}


@pytest.mark.parametrize("values", [None, 5, "text", b"x", {"b": 1}, np.array(3)])
def test_columns_that_are_none(values):
    refused("column 'a'", lambda: read(table(a=values), target="y"), InputError)


@pytest.mark.parametrize("values", [[1, "a", 2.5, b"x"] * 3, [1, [2], "c"] * 4])
def test_values_without_a_type_in_common(values):
    refused("column 'a'", lambda: read(table(a=values), target="y"), InputError)


def test_pandas_columns_without_a_type_in_common():
    columns = {"a": pd.Series([1j, 2, 3, 4]), "y": [0, 1, 0, 1]}
    refused("column 'a'", lambda: read(pd.DataFrame(columns), target="y"), InputError)


def test_features_without_a_target():
    refused("without a target", lambda: read(np.zeros((5, 2))), InputError)


@pytest.mark.parametrize("dtype", ["timedelta64[s]", "datetime64[D]", "complex64", "V4"])
def test_targets_of_odd_types(dtype):
    y = np.array([0, 1] * 6).astype(dtype) if dtype != "V4" else np.zeros(12, "V4")
    with pytest.raises(InputError):
        read((np.ones((12, 2)), y))


def test_lists_in_a_column_that_held_text():
    encoder = Encoder.fit(pl.DataFrame({"a": ["x", "y", "x"]}))
    refused("column 'a'", lambda: encoder.transform(pl.DataFrame({"a": [["x"], ["y"]]})), InputError)


@pytest.mark.parametrize("path", ["a" * 300 + ".csv", "~nobody-of-this-name/a.csv", "a\0b.csv", "\udcff.csv"])
def test_paths_that_no_file_can_have(path):
    refused("does not exist|no such file", lambda: read(path, target="y"), InputError)


def test_a_zip_of_another_age(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.zeros((4, 2)), y=np.arange(4) % 2)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.index(b"PK\x01\x02") + 6
    data[at : at + 2] = struct.pack("<H", 255)
    (tmp_path / "a.npz").write_bytes(data)
    refused("not an NPZ file|damaged", lambda: read(tmp_path / "a.npz"), InputError)


@pytest.mark.parametrize("name", ["read_ipc", "scan_parquet"])
def test_a_file_at_which_polars_panics(name, tmp_path, monkeypatch):
    def panic(*_, **__):
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr(pl, name, panic)
    path = tmp_path / ("a.arrow" if name == "read_ipc" else "a.parquet")
    path.write_bytes(b"ARROW1" if name == "read_ipc" else b"PAR1")
    refused("is not an? (Arrow|Parquet) file", lambda: read(path, target="y"), InputError)


def test_an_error_for_the_user_is_one_short_line():
    message = str(InputError("column 'a\nb\x1b[31m\u2028' " + "x" * 10**6 + " end"))
    assert message.isprintable()
    assert len(message) <= 800
    assert r"a\nb\x1b[31m\u2028" in message
    assert message.endswith("x end")
