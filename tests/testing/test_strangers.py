"""A stranger's part of any role keeps the contract, and a broken one fails the check that is made for its fault."""

import pytest
import torch

from lossworks.testing import CONTRACT, check_part
from lossworks.testing.contract import row_of, run_check
from lossworks.testing.subjects import subject_of
from tests.testing import strangers

CHECKS = {row.role: set(row.checks) for row in CONTRACT}


@pytest.mark.parametrize(
    ("part", "role"),
    [
        (strangers.PowerLoss(), "loss"),
        (strangers.PowerWeights(), "weighting"),
        (strangers.Shift(), "perturbation"),
        (strangers.WeightSum(), "penalty"),
        (strangers.SmoothedObjective(), "objective"),
        (strangers.Scaled(), "layer"),
        (strangers.SmallHalf(), "selector"),
        (strangers.Tempered(), "calibrator"),
        (strangers.spread, "function"),
        (strangers.PowerWeights, "weighting"),
    ],
)
def test_a_strangers_part_passes(part, role):
    said = check_part(part)
    assert set(said) == CHECKS[role]
    assert sum(reason == "passed" for reason in said.values()) > len(said) / 2


@pytest.mark.parametrize("part", [strangers.Decayed, lambda optimizer: strangers.Decayed(optimizer, 0.1)])
def test_a_strangers_optimizer_passes_as_a_class_and_as_a_function_that_makes_it(part):
    said = check_part(part, update=strangers.decayed)
    assert set(said) == CHECKS["optimizer"]
    assert said["written_out"] == said["grad_scaler"] == "passed"
    assert "no update was given" in check_part(part)["written_out"]


def test_a_function_without_an_example_is_tried_on_the_one_that_is_given():
    def halved(scores: torch.Tensor) -> torch.Tensor:
        """Half the scores.

        >>> 1 + 1
        2
        """
        if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
            raise TypeError(f"scores must be floats, got {type(scores).__name__}")
        return scores / 2

    with pytest.raises(AssertionError, match=r"found_by_pickle\(halved\)"):
        check_part(halved, example=lambda: (torch.ones(3),))
    assert check_part(strangers.spread, example=lambda: {"scores": torch.arange(4.0)})["no_nan"] == "passed"


def test_a_part_that_cannot_be_called_by_its_example_says_so():
    class Plain:
        r"""Holds nothing. :math:`a`.

        Papers: none

        >>> 1 + 1
        2
        """

    assert "no call of it" in check_part(Plain())["repeatable"]


BROKEN = [
    (strangers.NegativeWeights(), "non_negative", "the least weight is -"),
    (strangers.PlaceWeights(), "equal_rows_get_equal_weights", "rows of the one loss"),
    (strangers.FeaturesIgnored(), "reads_the_features", "features= makes no difference"),
    (strangers.CountingObjective(), "no_hidden_state", "the plain attribute calls changed"),
    (strangers.ForgetfulObjective(), "no_hidden_state", "the plain attribute seen changed"),
    (strangers.ForgetfulObjective(), "trains_finite", "the value is nan at step 4"),
    (strangers.NaNObjective(), "finite_value", "the value is nan"),
    (strangers.EvaluatingObjective(), "leaves_model_alone", "in another mode"),
    (strangers.DetachedObjective(), "gradient_exact", "a slope of"),
    (strangers.RootLayer(), "finite_output", "has no finite output"),
    (strangers.Identity(), "starts_as_identity", "not close"),
    (strangers.FirstHalf(), "ties_decided_by_rule", "rows of which the same is known"),
    (strangers.Mixed(), "keeps_the_answers", "an answer changed"),
    (strangers.ForgetfulDecayed, "resumes_in_mid_training", "after a stop other weights come"),
    (strangers.centred_in_place, "inputs_left_alone", "scores was changed"),
    (strangers.unchecked, "names_a_bad_tensor", "a bad scores raised nothing"),
]


@pytest.mark.parametrize(("part", "check", "said"), BROKEN, ids=[f"{check}-{said[:20]}" for _, check, said in BROKEN])
def test_a_broken_part_fails_the_check_for_its_fault(part, check, said):
    subject = subject_of(part)
    with pytest.raises(AssertionError, match=rf"{check}\({subject.name}\).*{said}"):
        run_check(subject, check, row_of(subject.part).checks[check])


@pytest.mark.parametrize("part", [part for part, _, _ in BROKEN])
def test_a_broken_part_does_not_pass_as_a_whole(part):
    with pytest.raises(AssertionError, match=r"\w+\(\w+\): "):
        check_part(part)


def test_an_update_that_is_another_is_caught():
    with pytest.raises(AssertionError, match=r"written_out\(Decayed\): the weights after step 1 are off"):
        check_part(strangers.Decayed, update=strangers.without_the_scale)


def test_a_strangers_penalty_that_reads_features_reads_them():
    subject = subject_of(strangers.FeatureSpread())
    assert run_check(subject, "reads_the_features", row_of(subject.part).checks["reads_the_features"]) == "passed"


@pytest.mark.xfail(strict=True, reason="Objective never passes features= to its penalties")
def test_an_objective_passes_the_features_to_a_penalty_that_reads_them():
    subject = subject_of(strangers.FeatureSpread())
    run_check(subject, "features_are_passed", row_of(subject.part).checks["features_are_passed"])


def test_torchs_generator_is_afterwards_what_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_part(strangers.Shift())
    assert torch.equal(torch.get_rng_state(), before)
