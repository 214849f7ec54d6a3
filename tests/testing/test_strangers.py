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


@pytest.mark.parametrize(
    "given", [None, 3, "LDRLoss", torch.zeros(2), [strangers.PowerLoss()], {}, torch, float("nan")]
)
def test_what_is_no_part_is_refused_in_one_line(given):
    with pytest.raises(TypeError, match=r"^part must be an instance of a role, a class or a function, got .*$") as said:
        check_part(given)
    assert "\n" not in str(said.value)


def test_a_wrapper_that_is_already_around_an_optimizer_is_refused():
    made = strangers.Decayed(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1), 0.1)
    with pytest.raises(TypeError, match=r"part must be the class Decayed, or a function that makes one"):
        check_part(made)


class Asking(strangers.PowerLoss):
    """A loss whose constructor needs what the class does not declare."""

    settings = ()

    def __init__(self, power):
        if not isinstance(power, float):
            raise RuntimeError("no\nlonger")
        super().__init__(power)


class Asked(Asking):
    """One that declares what its constructor refuses."""

    settings = ({"power": 1},)


@pytest.mark.parametrize(("part", "said"), [(Asking, "missing 1 required .*'power'"), (Asked, "no")])
def test_a_class_that_cannot_be_built_says_what_to_give(part, said):
    with pytest.raises(TypeError, match=rf"^part must be an instance of {part.__name__}, .* settings .*: .*{said}$"):
        check_part(part)


class Talkative(strangers.PowerWeights):
    """Weights that end in an error of several lines, which is not the contract's."""

    def forward(self, losses, *, index=None, group=None, target=None):
        raise KeyError("losses\nand more")


def test_an_error_from_inside_a_part_is_said_in_one_line_with_its_type():
    with pytest.raises(AssertionError, match=r"^\w+\(Talkative\): KeyError: .*losses") as said:
        check_part(Talkative())
    assert "\n" not in str(said.value)
    assert isinstance(said.value.__cause__, KeyError)


BROKEN = [
    (strangers.OneHotLoss(), "masked_classes", "value with a masked class"),
    (strangers.FocusedLoss(), "lost_labels", "gradient of a label at -inf"),
    (strangers.ShiftedLoss(), "common_offset", "at a common offset"),
    (strangers.CancellingLoss(), "small_residuals", "value of residuals"),
    (strangers.KinkedLoss(), "second_derivative_finite", "second derivative at outputs of"),
    (strangers.RoundedWeights(), "buffers_outlive_half", "counts is cast from"),
    (strangers.NegativeWeights(), "non_negative", "the least weight is -"),
    (strangers.NarrowWeights(), "holds_many_half_rows", "losses have other weights than the same numbers in float32"),
    (strangers.PlaceWeights(), "equal_rows_get_equal_weights", "rows of the one loss"),
    (strangers.UnclearedLoss(), "ignored_rows_may_be_anything", "a row that does not count has a gradient"),
    (strangers.MultipliedLoss(), "weight_zero_is_absent", "output has NaN"),
    (strangers.CentredLoss(), "weight_zero_is_absent", "rows of weight 0 that hold None"),
    (strangers.CentringObjective(), "weight_zero_is_absent", "output has NaN"),
    (strangers.FeaturesIgnored(), "reads_the_features", "features= makes no difference"),
    (strangers.Uphill(), "says_where_it_begins", "begins_at_input is False, not True"),
    (strangers.Uphill(), "works_in_inference_mode", "does not require grad"),
    (strangers.JointlyUphill(), "bad_slopes_stay_in_their_row", "slope of nan gives"),
    (strangers.ShiftByPlace(), "order_of_rows_is_nothing", "not equal"),
    (strangers.CountingObjective(), "no_hidden_state", "the plain attribute calls changed"),
    (strangers.ForgetfulObjective(), "no_hidden_state", "the plain attribute seen changed"),
    (strangers.ForgetfulObjective(), "trains_finite", "the value is nan at step 4"),
    (strangers.NaNObjective(), "finite_value", "the value is nan"),
    (strangers.RawObjective(), "works_in_inference_mode", "[Ii]nference tensors cannot be saved"),
    (strangers.EvaluatingObjective(), "leaves_model_alone", "in another mode"),
    (strangers.DetachedObjective(), "gradient_exact", "a slope of"),
    (strangers.RootLayer(), "finite_output", "has no finite output"),
    (strangers.Identity(), "starts_as_identity", "not close"),
    (strangers.FirstHalf(), "ties_decided_by_rule", "rows of which the same is known"),
    (strangers.Mixed(), "keeps_the_answers", "an answer changed"),
    (strangers.Masking(), "masked_classes", "a masked class changes the fit"),
    (strangers.ForgetfulDecayed, "resumes_in_mid_training", "after a stop other weights come"),
    (strangers.PartedDecayed, "follows_the_inner", "the groups are parted"),
    (strangers.UncheckpointedDecayed, "distributed_checkpoint", "after a distributed checkpoint"),
    (strangers.UnhookedDecayed, "hooks_run", "each must run once"),
    (strangers.DriftingSAM, "two_passes_scaled", "."),
    (strangers.DescendingSAM, "maximises", "other weights"),
    (strangers.NarrowSAM, "half_precision", "lead to other points"),
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


def test_an_objective_passes_the_features_to_a_penalty_that_reads_them():
    subject = subject_of(strangers.FeatureSpread())
    run_check(subject, "features_are_passed", row_of(subject.part).checks["features_are_passed"])


def test_torchs_generator_is_afterwards_what_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_part(strangers.Shift())
    assert torch.equal(torch.get_rng_state(), before)
