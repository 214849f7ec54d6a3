"""Errors name the argument, what came and what was wanted; values are read only where that is free."""

import math

import numpy as np
import pytest
import torch

import lossworks as lw
from lossworks.checks import (
    InputError,
    check_between,
    check_binary,
    check_choice,
    check_finite,
    check_int,
    check_positive,
    check_probabilities,
    check_sample_weight,
    nearest,
    readable,
    taken,
)
from lossworks.layers import best_prefix_length
from lossworks.losses import CrossEntropyLoss, GeneralRobustLoss, HuberLoss, LDRLoss, LogisticLoss
from lossworks.optim import gradient_noise_std
from lossworks.perturb import PGD
from lossworks.verdict import borda_ranking, paired_test
from lossworks.weights import kl_dro_weights

LOGITS, TARGET = torch.zeros(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: check_positive("lam", 0.0), ValueError, "lam must be finite and > 0, got 0"),
        (lambda: check_positive("lam", math.nan), ValueError, "lam must be finite"),
        (lambda: check_positive("lam", "1"), TypeError, "lam must be a number or a 0-d tensor, got str"),
        (lambda: check_positive("lam", True), TypeError, "lam must be a number"),
        (lambda: check_positive("lam", torch.ones(2)), ValueError, r"got a tensor of shape \(2,\)"),
        (lambda: check_positive("lam", torch.tensor(1)), TypeError, "lam must be a floating-point tensor"),
        (lambda: check_positive("lam", torch.tensor(-1.0)), ValueError, "lam must be finite and > 0, got -1"),
        (lambda: check_between("q", 1.0, 0, 1, open_high=True), ValueError, r"q must be in \[0, 1\), got 1"),
        (lambda: check_between("q", 0.0, 0, 1, open_low=True), ValueError, r"q must be in \(0, 1\], got 0"),
        (lambda: check_finite("b", math.inf), ValueError, "b must be finite, got inf"),
        (lambda: check_int("k", 2.0, low=1), TypeError, "k must be an int, got float"),
        (lambda: check_int("k", 0, low=1), ValueError, "k must be >= 1, got 0"),
        (lambda: check_int("k", 9, low=1, high=8), ValueError, r"k must be in \[1, 8\], got 9"),
        (lambda: check_int("k", 2**63, low=1), ValueError, r"k must be below 2\*\*63, got an int of 64 bits"),
        (
            lambda: check_probabilities("p", torch.tensor([0.5, 1.5])),
            ValueError,
            r"in \[0, 1\], got 0.5..1.5",
        ),
        (lambda: check_choice("how", "maen", ("mean", "sum")), ValueError, "did you mean 'mean'"),
        (lambda: CrossEntropyLoss()(LOGITS, torch.tensor([0, 1, 4])), ValueError, r"in \[0, 4\), got 4 in row 2"),
        (lambda: CrossEntropyLoss()(LOGITS, TARGET.int()), TypeError, "target must be int64 classes, got torch.int32"),
        (lambda: LDRLoss()(LOGITS, torch.zeros(3, 4)), TypeError, "LDRLoss takes int64 classes as target"),
        (lambda: CrossEntropyLoss()(LOGITS[0], TARGET), ValueError, "output must have shape"),
        (lambda: CrossEntropyLoss()(torch.zeros(2, 0, 3), torch.zeros(2, 3).long()), ValueError, r"target must be in"),
        (lambda: GeneralRobustLoss(learn=torch.tensor([])), TypeError, "learn must be True or False"),
        (lambda: PGD(0.1, random_start=torch.tensor([])), TypeError, "random_start must be True or False"),
        (lambda: borda_ranking(np.ones((2, 2)), 1), TypeError, "higher_is_better must be True or False"),
        (lambda: HuberLoss()(torch.zeros(3), torch.zeros(3, 1)), ValueError, "target must have the shape of output"),
        (lambda: LogisticLoss()(torch.zeros(2), torch.tensor([0.0, 0.5])), ValueError, "0 or 1, got 0.5 at 1"),
        (
            lambda: CrossEntropyLoss()(LOGITS, TARGET, sample_weight=torch.tensor([1.0, -1.0, 1.0])),
            ValueError,
            "sample_weight must be finite and >= 0, got -1 at 1",
        ),
        (
            lambda: CrossEntropyLoss()(LOGITS.masked_fill(torch.eye(3, 4).bool(), math.nan), TARGET),
            ValueError,
            "output has NaN in row 0, 1, 2",
        ),
    ],
)
def test_the_message_says_what_came_and_what_was_wanted(call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_checks_may_be_turned_off_and_are_on_again_afterwards():
    wrong = torch.full((3, 4), math.nan)
    with lw.checks(False):
        assert CrossEntropyLoss()(wrong, TARGET).isnan()
    with pytest.raises(ValueError, match="NaN"):
        CrossEntropyLoss()(wrong, TARGET)


def test_values_are_not_read_on_other_devices_unless_asked_for():
    elsewhere = torch.zeros(1, device="meta")
    assert not readable(elsewhere)
    with lw.checks():
        assert not readable(elsewhere)  # there are no values to read
    assert readable(torch.zeros(1))


def test_values_are_not_read_inside_vmap():
    seen = []
    torch.func.vmap(lambda row: seen.append(readable(row)) or row)(torch.zeros(2, 3))
    assert seen == [False]


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("churn", ["Churn_"]) == "; did you mean 'Churn_'?"
    assert nearest("zzz", ["churn"]) == ""


def test_numbers_that_cannot_be_computed_with_are_no_answer():
    with pytest.raises(TypeError, match=r"target must hold real numbers, got torch\.float8_e4m3fn"):
        check_binary(torch.ones(2).to(torch.float8_e4m3fn))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "call",
    [
        lambda wrong: check_sample_weight(wrong, wrong.shape),
        lambda wrong: check_probabilities("wrong", wrong),
        lambda wrong: best_prefix_length(wrong, 0.1),
        lambda wrong: kl_dro_weights(torch.ones(2), 1.0, base=wrong),
    ],
)
def test_what_is_said_of_a_tensor_with_a_gradient_does_not_warn(call):
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with pytest.raises(ValueError, match="inf"):
            call(torch.tensor([0.5, math.inf], requires_grad=True))
    finally:
        torch.set_warn_always(always)


def test_a_number_that_learns_is_read_without_a_warning():
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        assert gradient_noise_std(0, torch.tensor(0.25, requires_grad=True)) == 0.5
        assert paired_test([0.0, 1.0], test_fraction=0.5, level=torch.tensor(0.5)).mean == 0.5
    finally:
        torch.set_warn_always(always)


def test_what_a_users_function_fails_on_is_one_line_and_a_full_device_passes():
    with pytest.raises(ValueError, match=r"^x must fit, which fails \('bad \\x1b'\)$") as caught, taken("x must fit"):
        raise TypeError("bad \x1b\nand more")
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(torch.OutOfMemoryError), taken("x must fit"):
        raise torch.OutOfMemoryError("out of memory")
    with pytest.raises(KeyError), taken("x must fit"):
        raise KeyError("the user's own")


def test_an_int_has_64_bits():
    assert check_int("n", 2**63 - 1, low=0) == 2**63 - 1
    with pytest.raises(ValueError, match=r"n must be below 2\*\*63"):
        check_int("n", 2**63, low=0)
    with pytest.raises(ValueError, match=r"n must be in \[0, 9\], got 10"):
        check_int("n", 10, low=0, high=9)


def test_a_long_message_keeps_its_beginning_and_its_end():
    said = str(InputError("a" * 3000 + "\x1b" + "b" * 3000))
    assert len(said) <= 800
    assert said.startswith("aaa")
    assert said.endswith("b" * 250)
    assert " ... " in said
    assert str(InputError("x" * 800)) == "x" * 800


@pytest.mark.parametrize(("name", "value"), [("restarts", 0), ("steps", 0)])
def test_an_attack_takes_at_least_one_step_from_one_start(name, value):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        PGD(**{name: value})
