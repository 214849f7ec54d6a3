import math

import pytest
import torch
from scipy.stats import binom, norm
from torch.testing import assert_close

from lossworks.certify import (
    DualRandomizedSmoothing,
    RandomizedSmoothing,
    checkerboard_split,
    clopper_pearson_lower,
    dual_smoothing_radius,
)


def half_space(weight, offset=0.0):
    """Class 1 where the input is on the positive side."""

    def model(x):
        score = x.flatten(1) @ weight + offset
        return torch.stack([-score, score], dim=1)

    return model


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_at_the_bound_so_many_successes_have_that_chance(alpha):
    counts = torch.tensor([0, 1, 37, 99, 100])
    bounds = clopper_pearson_lower(counts, 100, alpha)
    assert float(bounds[0]) == 0
    for k, bound in zip(counts[1:].tolist(), bounds[1:].tolist(), strict=True):
        assert binom.sf(k - 1, 100, bound) == pytest.approx(alpha, rel=1e-10)


def test_a_half_space_is_certified_to_its_distance(generator):
    weight = torch.tensor([0.6, 0.8], dtype=torch.float64)
    x = torch.tensor([[0.3, 0.4], [-0.6, -0.2], [0.001, 0.0]], dtype=torch.float64)
    smoothed = RandomizedSmoothing(half_space(weight), 0.5, generator=generator)
    found = smoothed.certify(x, n=20_000)
    distance = (x @ weight).abs()
    assert found.answer.tolist() == [1, 0, -1]
    assert bool((found.radius <= distance).all())
    assert_close(found.radius[:2], distance[:2], atol=0.04, rtol=0)
    assert smoothed.predict(x).tolist()[:2] == [1, 0]
    assert found.radius[2] == 0


def test_the_same_generator_gives_the_same_certificate():
    model, x = half_space(torch.ones(2)), torch.tensor([[0.2, 0.2]])

    def found():
        return RandomizedSmoothing(model, 0.3, batch_size=64, generator=torch.Generator().manual_seed(0)).certify(
            x, n=500
        )

    assert torch.equal(found().radius, found().radius)


def test_all_copies_right_give_the_largest_radius_there_is():
    x, far = torch.tensor([[50.0, 50.0]]), half_space(torch.ones(2))
    single = RandomizedSmoothing(far, 0.5).certify(x, n=1000, alpha=0.001)
    assert_close(single.radius, torch.tensor([0.5 * norm.ppf(0.001 ** (1 / 1000))], dtype=torch.float64))
    dual = DualRandomizedSmoothing(far, far, torch.tensor([True, False]), 0.5).certify(x, n=1000, alpha=0.001)
    expected = math.sqrt(2) * 0.5 * norm.ppf(0.0005 ** (1 / 1000))
    assert_close(dual.radius, torch.tensor([expected], dtype=torch.float64))


def test_the_dual_radius_is_where_two_half_spaces_change_their_answer():
    sigma, p_left, p_right = 0.5, norm.cdf(1.0), 0.5
    radius = float(dual_smoothing_radius(torch.tensor([p_left]), torch.tensor([p_right]), sigma))

    def answers(step):
        """Whether the sum of both is above one, moved by this length in the worst of all directions."""
        angle = torch.linspace(0, math.pi / 2, 2001, dtype=torch.float64)
        left = torch.special.ndtr(1.0 - step * angle.cos() / sigma)
        right = torch.special.ndtr(0.0 - step * angle.sin() / sigma)
        return bool((left + right > 1).all())

    assert radius == pytest.approx(sigma / math.sqrt(2))
    assert answers(0.999 * radius)
    assert not answers(1.001 * radius)
    assert not answers(0.999 * sigma)  # the root of the squared single radii, as published code has it


def test_a_half_whose_class_is_the_rarer_one_takes_from_the_dual_radius():
    sigma, counts = 0.5, torch.tensor([990, 400])
    left, right = clopper_pearson_lower(counts, 1000, 0.001)
    radius = float(dual_smoothing_radius(left[None], right[None], sigma))

    def least(step):
        """The sum of both probabilities, moved by this length in the worst of all directions."""
        angle = torch.linspace(0, math.pi / 2, 2001, dtype=torch.float64)
        parts = (
            torch.special.ndtri(left) - step * angle.cos() / sigma,
            torch.special.ndtri(right) - step * angle.sin() / sigma,
        )
        return float(sum(map(torch.special.ndtr, parts)).min())

    assert radius == pytest.approx(0.5654, abs=5e-5)
    assert least(0.999 * radius) > 1 > least(1.001 * radius)
    as_published = sigma / math.sqrt(2) * max(0.0, norm.ppf(float(left)))  # the other half counts 0
    assert as_published == pytest.approx(0.6993, abs=5e-5)
    assert least(as_published) < 0.96


def test_the_dual_radius_is_symmetric_and_never_below_zero():
    p, q = torch.tensor([0.9, 0.3, 0.0, 1.0]), torch.tensor([0.6, 0.4, 0.9, 0.0])
    assert_close(dual_smoothing_radius(p, q, 1.0), dual_smoothing_radius(q, p, 1.0))
    assert bool((dual_smoothing_radius(p, q, 1.0) >= 0).all())
    assert_close(dual_smoothing_radius(p.half(), q, 1.0), dual_smoothing_radius(p.half().float(), q, 1.0))
    assert_close(dual_smoothing_radius(p[:1], p[:1], 0.5), 0.5 * math.sqrt(2) * torch.special.ndtri(p[:1]))


def test_each_half_sees_its_own_features_alone():
    seen = []

    def watching(x):
        seen.append(x)
        return torch.ones(len(x), 2)

    split = checkerboard_split(3, 4)
    DualRandomizedSmoothing(watching, watching, split, 1.0).certify(torch.ones(1, 2, 3, 4), n0=2, n=3)
    left, right = seen[0], seen[1]
    assert bool((left[..., ~split] == 0).all() and (right[..., split] == 0).all())
    assert bool((left[..., split] != 0).all())


def test_no_rows_have_no_certificates():
    model = half_space(torch.ones(2))
    assert RandomizedSmoothing(model, 1.0).certify(torch.ones(0, 2)).answer.shape == (0,)
    dual = DualRandomizedSmoothing(model, model, torch.tensor([True, False]), 1.0)
    assert dual.certify(torch.ones(0, 2)).radius.shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: RandomizedSmoothing(3, 1.0), "model"),
        (lambda m: RandomizedSmoothing(m, 0.0), "sigma"),
        (lambda m: RandomizedSmoothing(m, 1.0, batch_size=0), "batch_size"),
        (lambda m: RandomizedSmoothing(m, 1.0).certify(torch.ones(2)), "x must have shape"),
        (lambda m: RandomizedSmoothing(m, 1.0).certify(torch.ones(1, 2), n=0), "n must be"),
        (lambda m: RandomizedSmoothing(m, 1.0).certify(torch.ones(1, 2), alpha=1), "alpha"),
        (lambda m: RandomizedSmoothing(lambda x: x[:, 0], 1.0).certify(torch.ones(1, 2), n=5), "logits of shape"),
        (lambda m: DualRandomizedSmoothing(m, m, torch.ones(2), 1.0), "split"),
        (lambda m: DualRandomizedSmoothing(m, 3, torch.ones(2).bool(), 1.0), "right"),
        (lambda m: dual_smoothing_radius(torch.tensor([2.0]), torch.tensor([0.5]), 1.0), "p_left"),
        (lambda m: dual_smoothing_radius(torch.tensor([0.5]), torch.tensor([0.5, 0.5]), 1.0), "p_right"),
        (lambda m: clopper_pearson_lower(torch.tensor([5]), 4), "successes"),
        (lambda m: clopper_pearson_lower(torch.tensor([1.0]), 4), "successes"),
        (lambda m: clopper_pearson_lower(torch.tensor([1]).to_sparse(), 4), "successes must be a dense tensor"),
        (lambda m: clopper_pearson_lower(torch.tensor([2]), 5, 1e-300), "alpha must be in"),
        (lambda m: clopper_pearson_lower(torch.tensor([2]), 5, 1), "alpha must be in"),
        (lambda m: checkerboard_split(0, 3), "height"),
        (lambda m: checkerboard_split(3, 2**31), "width"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(half_space(torch.ones(2)))
