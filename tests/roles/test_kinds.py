"""The kinds of target: what each says of its tensors, how a loss declares one, and that nobody asks for its name."""

import ast
import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import lossworks
from lossworks.losses import CrossEntropyLoss
from lossworks.roles import BINARY, CLASSES, COUNTS, KINDS, PAIRS, REAL, BatchLoss, Kind, Loss, find_kind

EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class PoissonDeviance(Loss):
    """How unlikely a count is at a logarithm of its expected number, against the best there is."""

    kind = "counts"

    def per_sample(self, output, target):
        return 2 * (torch.special.xlogy(target, target) - target * output - target + output.exp())


@EVERY
def test_a_kind_is_found_by_its_name_and_stays_itself_in_copies(kind):
    assert find_kind(kind.name) is kind
    assert copy.deepcopy(kind) == kind
    assert pickle.loads(pickle.dumps(kind)) == kind
    assert {kind: 1}[copy.deepcopy(kind)] == 1
    assert [other for other in KINDS.values() if other == kind] == [kind]


def test_a_kind_equals_its_name_and_no_other():
    for name, kind in KINDS.items():
        assert kind == name
        assert {kind: 1}[name] == 1
        assert sum(kind == other for other in KINDS) == 1


@EVERY
def test_its_example_fits_and_what_it_refuses_is_refused(kind, generator):
    output, target = kind.example(20, 4, torch.float32, generator)
    rows = kind.rows(output, target)
    assert output.dtype == torch.float32
    assert (len(rows.output), rows.target.shape, rows.shape) == (20, (20,), (20,))
    assert rows.output.shape == ((20,) if kind.flat else (20, kind.outputs(4)))
    assert kind.row_shape(target) == rows.shape
    if (levels := kind.levels(4)) is not None:
        assert set(target.tolist()) == set(range(levels))
    for refused in kind.refused(target, 4):
        with pytest.raises((ValueError, TypeError), match="target"):
            kind.rows(output, refused)


@EVERY
def test_a_target_of_another_shape_is_refused(kind, generator):
    output, target = kind.example(6, 3, torch.float64, generator)
    with pytest.raises(ValueError, match="target must have"):
        kind.rows(output, target[:5])


def test_rows_of_classes_are_positions_and_ignored_ones_have_class_zero():
    output = torch.arange(24.0).reshape(2, 3, 4)
    target = torch.tensor([[2, 0, -1, 1], [1, -1, 0, 2]])
    rows = CLASSES.rows(output, target, ignore_index=-1)
    assert_close(rows.output[5], output[1, :, 1])
    assert rows.target.tolist() == [2, 0, 0, 1, 1, 0, 0, 2]
    assert rows.kept.tolist() == [True, True, False, True, True, False, True, True]
    assert rows.shape == (2, 4)
    assert CLASSES.filled(target, -1).flatten().tolist() == rows.target.tolist()
    assert CLASSES.kept(torch.tensor([0, 255, 2]), 255).tolist() == [True, False, True]


def test_class_probabilities_are_rows_of_which_all_are_kept(generator):
    target = torch.rand(2, 3, 4, generator=generator)
    rows = CLASSES.rows(torch.zeros(2, 3, 4), target)
    assert_close(rows.target[5], target[1, :, 1])
    assert rows.kept is None
    assert CLASSES.row_shape(target) == (2, 4)
    with pytest.raises(TypeError, match="target must be int64 classes, or probabilities"):
        CLASSES.row_shape(target[0, 0])


@pytest.mark.parametrize("kind", [BINARY, COUNTS])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_zeros_and_ones_are_targets_of_any_dtype_where_the_kind_is_no_estimate(kind, dtype):
    target = torch.tensor([0, 1, 1]).to(dtype)
    assert_close(kind.rows(torch.zeros(3), target).target, torch.tensor([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_a_count_is_finite_and_not_negative(bad):
    with pytest.raises(ValueError, match=r"target must be counts, finite and >= 0, got .* at 1"):
        COUNTS.rows(torch.zeros(3), torch.tensor([0.0, bad, 2.0]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (CLASSES, torch.tensor([[0.2, 0.8]])),
        (BINARY, torch.tensor([[0.5, 0.8]])),
        (COUNTS, torch.tensor([[1.0, 4.0]])),
        (REAL, torch.tensor([[0.0, math.log(4)]])),
        (PAIRS, torch.tensor([[0.0, math.log(4)]])),
    ],
)
def test_what_an_output_predicts(kind, expected):
    assert_close(kind.predict(torch.tensor([[0.0, math.log(4)]])), expected)


def test_a_class_body_may_give_a_kind_by_name():
    class Own(BatchLoss):
        kind = "pairs"

    assert PoissonDeviance.kind == COUNTS
    assert Own.kind == PAIRS
    assert Loss.kind == CLASSES
    assert BatchLoss.kind == REAL


@pytest.mark.parametrize("role", [Loss, BatchLoss])
def test_a_wrong_kind_is_refused_where_the_class_is_made(role):
    with pytest.raises(ValueError, match=r"Wrong.kind must be one of .*'counts', 'pairs', got 'clases'; did you mean"):
        type("Wrong", (role,), {"kind": "clases"})
    with pytest.raises(TypeError, match=r"Wrong.kind must be a Kind or the name of one, got 3"):
        type("Wrong", (role,), {"kind": 3})
    with pytest.raises(TypeError, match=r"Wrong.kind must be a Kind or the name of one, got None"):
        type("Wrong", (role,), {"kind": None})


@pytest.mark.parametrize("role", [Loss, BatchLoss])
def test_a_kind_that_lacks_what_messages_and_saved_models_say_is_refused_where_it_is_used(role):
    nameless = type("Nameless", (Kind,), dict.fromkeys(Kind.__abstractmethods__, print))
    with pytest.raises(TypeError, match=r"Wrong.kind: Nameless must define name and title"):
        type("Wrong", (role,), {"kind": nameless()})


@pytest.mark.parametrize("role", [Loss, BatchLoss])
def test_an_instance_has_no_kind_of_its_own(role):
    loss = type("Own", (role,), {"kind": "real"})()
    with pytest.raises(TypeError, match=r"Own.kind is set in the class body, not on an instance: .* kind = 'binary'"):
        loss.kind = "binary"
    assert loss.kind == REAL


def test_a_loss_of_counts_has_all_that_the_base_gives(generator):
    output, target = COUNTS.example(12, 1, torch.float64, generator)
    loss = PoissonDeviance()
    nll = F.poisson_nll_loss(output, target, log_input=True, full=False)
    best = (target - torch.special.xlogy(target, target)).mean()
    assert_close(loss(output, target), 2 * (nll - best))
    assert loss.output_size(7) == 1
    assert_close(loss.predict(output), output.exp())
    assert loss.total_of(target) == 12
    with pytest.raises(ValueError, match="target must be counts"):
        loss(output, -target - 1)


def test_a_kind_of_ones_own_needs_no_line_elsewhere():
    class Angles(Kind):
        name, title = "angles", "angles"

        def predict(self, output):
            return output % 360

        def example_target(self, rows, classes, dtype, generator=None):
            return 360 * torch.rand(rows, dtype=dtype, generator=generator)

        def refused(self, target, classes):
            return ()

    class AngleLoss(Loss):
        kind = Angles()

        def per_sample(self, output, target):
            return 1 - torch.deg2rad(output - target).cos()

    output, target = AngleLoss.kind.example(8, 3, torch.float64)
    assert_close(AngleLoss()(output + 360, target), AngleLoss()(output, target))
    assert AngleLoss().predict(torch.tensor(370.0)) == 10


def test_class_probabilities_are_refused_by_a_loss_that_takes_classes_alone():
    class Hard(Loss):
        def per_sample(self, output, target):
            return output[:, 0]

    with pytest.raises(TypeError, match="Hard takes int64 classes as target"):
        Hard()(torch.zeros(2, 3), torch.ones(2, 3) / 3)
    assert CrossEntropyLoss()(torch.zeros(2, 3), torch.ones(2, 3) / 3) > 1


def test_nobody_compares_the_name_of_a_kind():
    """Who wants to know something of a kind asks the object; only the kinds' own file may hold their names apart."""
    root = Path(lossworks.__file__).parent
    found = [
        f"{path.relative_to(root).as_posix()}:{node.lineno}"
        for path in sorted(root.rglob("*.py"))
        if path != root / "roles" / "kinds.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _compares_kinds(node)
    ]
    assert not found
    assert _compares_kinds(ast.parse('loss.kind.name in ("real", "pairs")', mode="eval").body)
    assert not _compares_kinds(ast.parse('column.kind == "category"', mode="eval").body)


def _compares_kinds(node):
    """Whether this compares a kind, or something of it, with a name that a kind has."""
    if not isinstance(node, ast.Compare):
        return False
    inside = list(ast.walk(node))
    asked = any(isinstance(one, ast.Attribute) and one.attr == "kind" for one in inside)
    return asked and any(isinstance(one, ast.Constant) and one.value in KINDS for one in inside)
