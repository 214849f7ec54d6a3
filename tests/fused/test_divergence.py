import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from lossworks.fused import linear_kl

ROWS, D, TAUGHT, CLASSES = 10, 6, 9, 7


@pytest.fixture
def pair(generator):
    def make(rows, d):
        return [
            torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
            for shape in ((rows, d), (CLASSES, d), (CLASSES,))
        ]

    return make(ROWS, D), make(ROWS, TAUGHT)


def reference(student, teacher, temperature, direction):
    s, t = (Categorical(logits=(h @ w.T + b) / temperature) for h, w, b in (student, teacher))
    return kl_divergence(t, s) if direction == "forward" else kl_divergence(s, t)


def call(student, teacher, **kwargs):
    return linear_kl(
        *student[:2], *(tensor for tensor in teacher[:2]), student_bias=student[2], teacher_bias=teacher[2], **kwargs
    )


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_equals_the_divergence_of_the_two_distributions(pair, generator, direction, reduction):
    student, teacher = pair
    weight = torch.rand(ROWS, dtype=torch.float64, generator=generator)
    weight[3] = 0
    each = reference(student, teacher, 1.7, direction) * weight
    wanted = {"none": each, "sum": each.sum(), "mean": each.sum() / weight.sum()}[reduction]
    got = call(
        student, teacher, temperature=1.7, direction=direction, sample_weight=weight, reduction=reduction, chunk=4
    )
    assert_close(got, wanted)
    upstream = torch.rand_like(wanted)
    found = torch.autograd.grad(got, (*student, *teacher), upstream, allow_unused=True)
    for one, other in zip(found, torch.autograd.grad(wanted, student, upstream), strict=False):
        assert_close(one, other)
    assert found[3:] == (None, None, None)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(pair, direction):
    student, _ = pair
    value = call(student, student, direction=direction)
    assert_close(value, torch.zeros_like(value))
    assert_close(torch.autograd.grad(value, student[1])[0], torch.zeros_like(student[1]))


def test_sequences_keep_their_shape_and_compile(pair):
    student, teacher = pair
    shaped = [(h.detach().reshape(2, 5, -1), w, b) for h, w, b in (student, teacher)]
    each = call(*shaped, reduction="none", chunk=3)
    assert_close(each, reference(student, teacher, 1.0, "forward").reshape(2, 5))
    torch._dynamo.reset()
    compiled = torch.compile(lambda: call(*shaped, reduction="none", chunk=3), backend="aot_eager", fullgraph=True)
    assert_close(compiled(), each)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"direction": "sideways"}, "direction"),
        ({"teacher_hidden": torch.ones(ROWS + 1, TAUGHT)}, "teacher_hidden"),
        ({"teacher_weight": torch.ones(CLASSES + 1, TAUGHT)}, "teacher_weight"),
        ({"student_weight": torch.ones(CLASSES, D + 1)}, "student_hidden"),
        ({"student_bias": torch.full((CLASSES,), math.nan)}, "student_hidden @ student_weight.T has NaN"),
        ({"sample_weight": torch.ones(ROWS + 1)}, "sample_weight"),
    ],
)
def test_a_bad_argument_is_named(changed, match):
    given = {
        "student_hidden": torch.ones(ROWS, D),
        "student_weight": torch.ones(CLASSES, D),
        "teacher_hidden": torch.ones(ROWS, TAUGHT),
        "teacher_weight": torch.ones(CLASSES, TAUGHT),
    }
    with pytest.raises(ValueError, match=match):
        linear_kl(**{**given, **changed})
