import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import randint
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from lossworks.catalog import parts
from lossworks.comparison.tasks.binary import Binary
from lossworks.losses import CrossEntropyLoss, FocalLoss, HuberLoss, SquaredLoss
from lossworks.objective import Objective
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from lossworks.roles import BINARY, CLASSES, REAL, Loss
from lossworks.sklearn import ObjectiveClassifier, ObjectiveRegressor, _FixedTimesWeights, _in_proportion
from lossworks.weights import ClassBalanced, SampleWeights

FAST = {"max_steps": 40, "lr": 0.03, "width": 32}
EXPECTED_TO_FAIL = {
    "check_sample_weight_equivalence_on_dense_data": "training is stochastic: a row that is there twice is drawn in "
    "other batches than one of weight 2, so the two models are equal in expectation only"
}


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(200, 3))


@parametrize_with_checks(
    [ObjectiveClassifier(**FAST), ObjectiveRegressor(**FAST)],
    expected_failed_checks=lambda _: EXPECTED_TO_FAIL,
)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def losses_of(kind):
    losses = {name: entry.part for name, entry in parts().items() if isinstance(entry.part, type)}
    return [name for name, part in losses.items() if issubclass(part, Loss) and part.kind == kind]


@pytest.mark.parametrize(
    ("name", "estimator", "classes"),
    [
        *((name, ObjectiveClassifier, 3) for name in losses_of(CLASSES)),
        *((name, ObjectiveClassifier, 2) for name in losses_of(BINARY)),
        *((name, ObjectiveRegressor, 0) for name in losses_of(REAL)),
    ],
)
def test_every_loss_of_the_catalog_trains_by_name(rows, name, estimator, classes):
    y = np.digitize(rows[:, 0], [0.0, 0.7][: classes - 1]) if classes else rows[:, 0]
    fitted = estimator(name, max_steps=2, random_state=0).fit(rows, y)
    assert np.isfinite(fitted.predict(rows)).all()
    if classes:
        probabilities = fitted.predict_proba(rows)
        assert probabilities.shape == (200, classes)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_it_works_in_a_pipeline_in_cross_validation_and_in_a_grid_search_with_frames_and_text_labels():
    X, y = load_iris(return_X_y=True, as_frame=True)
    y = y.map({0: "setosa", 1: "versicolor", 2: "virginica"})
    pipeline = make_pipeline(StandardScaler(), ObjectiveClassifier(max_steps=150, lr=0.01, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.85
    grid = {"objectiveclassifier__loss": ["LDRLoss", FocalLoss(2.0)], "objectiveclassifier__model": ["linear"]}
    search = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss").fit(X, y)
    assert search.best_estimator_[-1].classes_.tolist() == ["setosa", "versicolor", "virginica"]
    direct = ObjectiveClassifier(**FAST).fit(X, y)
    assert direct.feature_names_in_.tolist() == X.columns.tolist()


def test_numbers_drawn_by_a_randomized_search_are_taken(rows):
    drawn = {
        "width": randint(4, 9),
        "max_steps": randint(2, 4),
        "batch_size": randint(8, 16),
        "patience": randint(1, 3),
    }
    search = RandomizedSearchCV(ObjectiveRegressor(), drawn, n_iter=2, cv=2, random_state=0, error_score="raise")
    assert search.fit(rows, rows[:, 0]).best_params_["width"] in range(4, 9)


def test_the_regressor_learns_in_the_targets_own_unit():
    X, y = load_diabetes(return_X_y=True)
    scores = cross_val_score(
        ObjectiveRegressor("HLGaussLoss", lr=0.01, max_steps=200, random_state=0), X, 100 * y, cv=2
    )
    assert scores.min() > 0.35


def test_a_linear_model_without_decay_is_logistic_regression():
    X = np.random.default_rng(0).choice([-1.0, 1.0], size=(600, 3))  # two values: robust scaling stays affine
    y = (X @ [1.0, -0.5, 0.2] + np.random.default_rng(1).logistic(size=600) > 0).astype(int)
    ours = ObjectiveClassifier(
        model="linear", lr=0.02, weight_decay=0.0, max_steps=600, batch_size=512, early_stopping=False, random_state=0
    )
    probabilities = ours.fit(X, y).predict_proba(X)[:, 1]
    reference = LogisticRegression(C=np.inf).fit(X, y).predict_proba(X)[:, 1]
    np.testing.assert_allclose(probabilities, reference, atol=0.06)


def test_one_random_state_gives_one_model_and_leaves_torchs_generator_alone(rows):
    y = rows[:, 0] > 0
    estimator = ObjectiveClassifier(perturb=GaussianNoise(0.1), random_state=3, **FAST)
    state = torch.get_rng_state()
    first, second = clone(estimator).fit(rows, y), clone(estimator).fit(rows, y)
    other = clone(estimator).set_params(random_state=4).fit(rows, y)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.predict_proba(rows), second.predict_proba(rows))
    assert not np.array_equal(first.predict_proba(rows), other.predict_proba(rows))


def test_a_pickled_model_predicts_the_same(rows):
    estimator = ObjectiveClassifier(FocalLoss(1.5), weights="ClassBalanced", random_state=0, **FAST)
    fitted = estimator.fit(rows, rows[:, 0] > 0.5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(rows), fitted.predict_proba(rows))


def test_probabilities_are_the_softmax_of_the_modules_logits_over_the_temperature(rows):
    fitted = ObjectiveClassifier(random_state=0, **FAST).fit(rows, np.digitize(rows[:, 0], [0.0, 0.7]))
    logits = fitted.module_(torch.from_numpy(rows.astype(np.float32)).double()).detach().numpy()
    np.testing.assert_allclose(fitted.predict_proba(rows), softmax(logits / fitted.temperature_, axis=1))
    assert fitted.temperature_ not in (0.0, 1.0)


def test_the_temperature_mends_an_overconfident_model():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(600, 10))
    y = (X[:, 0] + generator.logistic(size=600) > 0).astype(int)
    fitted = ObjectiveClassifier(max_steps=400, lr=0.01, early_stopping=False, random_state=0).fit(X[:300], y[:300])
    logits = np.log(fitted.predict_proba(X[300:])) * fitted.temperature_
    assert fitted.temperature_ > 2
    assert log_loss(y[300:], fitted.predict_proba(X[300:])) < log_loss(y[300:], softmax(logits, axis=1))


def test_early_stopping_keeps_the_best_state_and_without_it_the_last_is_kept(rows):
    y = rows[:, 0]
    early = ObjectiveRegressor(max_steps=400, lr=0.1, patience=2, random_state=0).fit(rows, y)
    assert early.n_iter_ < 400
    assert early.best_validation_score_ == early.validation_scores_.max()
    assert early.best_step_ == early.validation_steps_[early.validation_scores_.argmax()]
    full = ObjectiveRegressor(max_steps=45, early_stopping=False, random_state=0).fit(rows, y)
    assert (full.n_iter_, full.best_step_, len(full.validation_scores_)) == (45, 45, 1)


def test_weights_per_row_weigh_the_mean_of_the_target():
    X, y = np.zeros((400, 1)), np.tile([0.0, 1.0], 200)
    estimator = ObjectiveRegressor(model="linear", lr=0.02, weight_decay=0.0, max_steps=400, random_state=0)
    fitted = estimator.fit(X, y, sample_weight=np.where(y == 1, 3.0, 1.0))
    np.testing.assert_allclose(fitted.predict(X[:1]), 0.75, atol=0.05)


@pytest.mark.parametrize("weights", ["ClassBalanced", ClassBalanced(torch.tensor([3.0, 1.0]))])
def test_weights_per_row_multiply_the_weighting(weights):
    X, y = np.zeros((400, 1)), np.tile([0, 0, 0, 1], 100)
    options = {"model": "linear", "lr": 0.02, "weight_decay": 0.0, "max_steps": 400, "early_stopping": False}

    def odds(sample_weight):
        fitted = ObjectiveClassifier(weights=weights, random_state=0, **options).fit(X, y, sample_weight)
        zero, one = fitted.module_(torch.zeros(1, 1, dtype=torch.float64))[0].tolist()
        return math.exp(one - zero)

    assert odds(None) == pytest.approx(1, rel=0.15)
    assert odds(np.where(y == 1, 5.0, 1.0)) == pytest.approx(5, rel=0.15)


def test_the_product_of_weightings_is_the_product_of_their_weights():
    fixed, balanced = SampleWeights(torch.tensor([1.0, 2.0, 3.0])), ClassBalanced(torch.tensor([30.0, 10.0]))
    index, target = torch.tensor([2, 0]), torch.tensor([1, 0])
    found = _FixedTimesWeights(fixed, balanced)(torch.zeros(2), index=index, target=target)
    torch.testing.assert_close(found, torch.tensor([1.5 * 2.0, 0.5 * 2 / 3]))


def test_the_temperature_heeds_the_weights_per_row(rows):
    y = rows[:, 0] > 0
    wrong = np.arange(200) % 3 == 0
    fitted = ObjectiveClassifier(max_steps=150, lr=0.02, random_state=0)
    fitted.fit(rows, y ^ wrong, sample_weight=np.where(wrong, 1e-9, 1.0))
    assert log_loss(y, fitted.predict_proba(rows)) < 0.2


@pytest.mark.parametrize("estimator", [ObjectiveClassifier, ObjectiveRegressor])
def test_equal_weights_are_no_weights(rows, estimator):
    y = (rows[:, 0] > 0).astype(float)
    plain, equal = (estimator(random_state=0, **FAST).fit(rows, y, w) for w in (None, np.full(200, 0.3)))
    np.testing.assert_array_equal(plain.predict(rows), equal.predict(rows))


def test_rows_of_weight_zero_are_not_there(rows):
    y, weight = np.where(rows[:, 0] > 0, "yes", "no").astype(object), np.ones(200)
    X = rows.copy()
    X[::4], y[::4], weight[::4] = 1e30, "junk", 0
    kept = weight > 0
    estimator = ObjectiveClassifier("LDAMLoss", random_state=0, **FAST)
    left_out, removed = clone(estimator).fit(X, y, weight), clone(estimator).fit(X[kept], y[kept])
    assert left_out.classes_.tolist() == ["no", "yes"]
    np.testing.assert_array_equal(left_out.predict_proba(rows), removed.predict_proba(rows))


def test_rows_in_proportion_to_their_weight():
    rows = np.array([4, 2, 7, 0])
    np.testing.assert_array_equal(_in_proportion(rows, np.full(8, 0.1)), rows)
    assert sorted(_in_proportion(rows, np.array([0.0, 0, 1, 0, 2, 0, 0, 1]))) == [2, 4, 4, 7]
    assert not len(_in_proportion(rows[:0], np.ones(8)))


@pytest.mark.parametrize("labels", ["ab", "aab", "aabb", "abcdefg", "aaaaaaaaab", "aabbccddeeffgghhiijj"])
def test_few_rows_train_and_every_class_keeps_a_row_to_fit_on(labels):
    y = np.unique(list(labels), return_inverse=True)[1]
    estimator = ObjectiveClassifier(max_steps=2)
    for seed in range(20):
        fit, inner = estimator._split(np.arange(len(y)), y, seed)
        assert set(y[fit]) == set(y)
        assert sorted([*fit, *inner]) == list(range(len(y)))
    X = np.eye(len(y))
    fitted = estimator.set_params(random_state=0).fit(X, list(labels))
    assert set(fitted.predict(X)) <= set(labels)
    if len(set(labels)) == len(labels):  # no row can be kept out
        assert fitted.temperature_ == 1


def test_a_single_row_is_enough_for_a_regressor():
    np.testing.assert_allclose(
        ObjectiveRegressor(random_state=0, **FAST).fit([[1.0]], [7.0]).predict([[1.0]]), 7, atol=1
    )


def test_parts_that_are_given_and_parts_that_are_named_make_one_objective():
    facts = {"class_counts": torch.tensor([3.0, 1.0]), "num_classes": 2, "num_samples": 4}
    penalty, noise, loss = WeightMagnitudePenalty(1e-3), GaussianNoise(0.1), CrossEntropyLoss(0.1)
    mixed = ObjectiveClassifier(loss, weights="ClassBalanced", perturb=noise, penalties=[penalty])
    objective = mixed._objective(Binary(), facts)
    assert (objective.loss, objective.perturb, list(objective.penalties)) == (loss, noise, [penalty])
    assert isinstance(objective.weights, ClassBalanced)
    named = ObjectiveClassifier("FocalLoss+ClassBalanced+GaussianNoise")._objective(Binary(), facts)
    assert [type(part) for part in (named.loss, named.weights, named.perturb)] == [
        FocalLoss,
        ClassBalanced,
        GaussianNoise,
    ]


def test_training_leaves_the_parts_that_it_was_given_as_they_were(rows):
    loss, weights = FocalLoss(torch.tensor(1.5)), ClassBalanced(torch.tensor([1.0, 2.0]))
    before = pickle.dumps((loss, weights))
    y = rows[:, 0] > 0
    ObjectiveClassifier(loss, weights=weights, random_state=0, **FAST).fit(rows, y, np.arange(1.0, 201))
    assert pickle.dumps((loss, weights)) == before


def test_a_factory_builds_the_network(rows):
    def factory(shape, outputs):
        return nn.Sequential(nn.Linear(*shape, 8), nn.Tanh(), nn.Linear(8, outputs))

    fitted = ObjectiveRegressor(model=factory, random_state=0, **FAST).fit(rows, rows[:, 0])
    assert any(isinstance(module, nn.Tanh) for module in fitted.module_.modules())
    assert fitted.score(rows, rows[:, 0]) > 0.5


def test_a_diverged_training_warns(rows):
    class Broken(SquaredLoss):
        def per_sample(self, output, target):
            return super().per_sample(output, target) * torch.inf

    with pytest.warns(ConvergenceWarning, match="lower lr"):
        ObjectiveRegressor(Broken(), random_state=0, **FAST).fit(rows, rows[:, 0])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"loss": "FocalLos"}, ValueError, "loss: no part is called 'FocalLos'; did you mean 'FocalLoss'"),
        ({"loss": "SquaredLoss"}, ValueError, "loss: 'SquaredLoss' is for real values, but the target is binary"),
        ({"loss": HuberLoss()}, ValueError, "loss: 'HuberLoss' is for real values, but the target is binary"),
        ({"loss": FocalLoss}, TypeError, "loss must be a name from the catalog or a lossworks Loss"),
        ({"loss": Objective(FocalLoss())}, TypeError, r"or a lossworks Loss, got Objective\( [^\n]*$"),
        ({"weights": "Balanced"}, ValueError, "loss and weights: no part is called 'Balanced'"),
        ({"weights": FocalLoss()}, TypeError, "weights must be a lossworks weights part, got FocalLoss"),
        (
            {"loss": "FocalLoss+ClassBalanced", "weights": ClassBalanced(torch.ones(2))},
            ValueError,
            "weights: 'FocalLoss.ClassBalanced' names ClassBalanced already",
        ),
        ({"model": "mpl"}, ValueError, "model must be one of .* got 'mpl'; did you mean 'mlp'"),
        ({"metric": "rmse"}, ValueError, "metric must be one of"),
        ({"max_steps": 0}, ValueError, "max_steps must be >= 1, got 0"),
        ({"validation_fraction": 0.8}, ValueError, r"validation_fraction must be in \(0, 0.5\], got 0.8"),
        ({"device": "tpu"}, ValueError, "device must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_came_and_what_was_wanted(rows, parameters, error, message):
    with pytest.raises(error, match=message):
        ObjectiveClassifier(**(FAST | parameters)).fit(rows, rows[:, 0] > 0)


def test_one_class_is_refused(rows):
    y = (rows[:, 0] > 0).astype(int)
    with pytest.raises(ValueError, match="two classes or more, got one class: 1"):
        ObjectiveClassifier().fit(rows, np.ones(200, dtype=int))
    with pytest.raises(ValueError, match="among rows with a positive sample_weight, got one class: 1"):
        ObjectiveClassifier().fit(rows, y, sample_weight=y)


def test_a_frame_of_nullable_columns_is_read():
    X, y = load_wine(return_X_y=True, as_frame=True)
    fitted = ObjectiveClassifier(random_state=0, **FAST).fit(X.convert_dtypes(), pd.Categorical(y))
    assert fitted.score(X, y) > 0.9


def test_import_lossworks_does_not_import_scikit_learn():
    code = "import lossworks, sys; assert not {'sklearn', 'lossworks.sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_told_of_the_training_is_its_curve(monkeypatch):
    """One model is trained, so its curve is the first of all, and the number of steps its last."""
    import lossworks.sklearn as door

    kept = []
    train = door.train
    monkeypatch.setattr(door, "train", lambda *args, **kwargs: kept.append(train(*args, **kwargs)) or kept[-1])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    classifier = ObjectiveClassifier(max_steps=60, random_state=0).fit(x, x[:, 0] > 0)
    steps, scores = zip(*kept[0].curves[0], strict=True)
    assert classifier.validation_steps_.tolist() == list(steps)
    assert classifier.validation_scores_.tolist() == list(scores)
    assert classifier.n_iter_ == steps[-1] > steps[0]


def test_a_single_row_is_fitted_on_and_none_is_kept_out():
    classifier = ObjectiveRegressor()
    rows, inner = classifier._split(np.array([4]), None, 0)
    assert (rows.tolist(), inner.tolist()) == ([4], [])
