import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.perturb import AdvStyle, DSUStyle, adversarial_style_step, style_perturb


@pytest.fixture
def maps(generator):
    scale = torch.linspace(0.5, 2, 6)[:, None, None, None]
    return (1 + scale * torch.randn(6, 3, 5, 4, generator=generator)).double()


def moments(x):
    return x.mean((2, 3)), x.std((2, 3))


def always_adversarial(**options):
    return AdvStyle(3, p=(0, 1, 0), **options).double()


def test_no_shift_is_the_identity(maps):
    zero = torch.zeros(1, 1, 1, 1, dtype=maps.dtype)
    assert_close(style_perturb(maps, zero, zero), maps)


def test_the_output_has_the_mean_and_the_spread_asked_for(maps, generator):
    mean, std = moments(maps)
    mean_shift, std_shift = torch.randn(2, 6, 3, 1, 1, generator=generator, dtype=maps.dtype)
    changed_mean, changed_std = moments(style_perturb(maps, mean_shift, std_shift, eps=1e-12))
    assert_close(changed_mean, mean + mean_shift[..., 0, 0])
    assert_close(changed_std, (std + std_shift[..., 0, 0]).abs())


def test_dsu_shifts_by_the_spread_between_images(generator):
    x = torch.randn(2000, 1, 2, 2, generator=generator) * 0.1 + 3 * torch.randn(2000, 1, 1, 1, generator=generator)
    changed = DSUStyle(generator=generator)(x)
    shift = (changed - x).mean((2, 3))
    assert_close(shift.std(), x.mean((2, 3)).std(), rtol=0.05, atol=0)


@pytest.mark.parametrize("layer", [DSUStyle(), AdvStyle(3)])
def test_rests_in_eval_mode(layer, maps):
    assert layer.eval()(maps) is maps


def test_a_single_image_falls_back_to_eps(maps):
    changed = DSUStyle(eps=1e-12)(maps[:1])
    assert_close(changed, maps[:1], atol=1e-4, rtol=1e-4)


def test_the_scales_begin_at_the_batch_spread_once(maps):
    layer = always_adversarial()
    layer(maps)
    first = layer.mean_scale.clone()
    assert_close(first.flatten(), maps.mean((2, 3)).std(0), rtol=1e-4, atol=1e-5)
    layer(10 * maps)
    assert_close(layer.mean_scale, first, rtol=0, atol=0)


def test_the_reversed_gradient_is_minus_the_noise_weighted_sum_times_adv_weight(maps, generator):
    upstream = torch.randn(maps.shape, generator=generator, dtype=maps.dtype)
    layer = always_adversarial(adv_weight=2.5, generator=torch.Generator().manual_seed(5))
    layer(maps)
    layer.generator = torch.Generator().manual_seed(7)
    (layer(maps) * upstream).sum().backward()
    drawn = torch.Generator().manual_seed(7)
    torch.multinomial(torch.tensor([0.0, 1.0, 0.0]), 1, generator=drawn)
    noise = torch.randn(6, 3, 1, 1, generator=drawn, dtype=maps.dtype)
    wanted = -2.5 * (noise * upstream).sum((0, 2, 3), keepdim=True)
    assert_close(layer.mean_scale.grad, wanted)


def test_each_branch_is_drawn_as_often_as_it_says(maps):
    layer = AdvStyle(3, p=(0.5, 0.25, 0.25), generator=torch.Generator().manual_seed(0)).double()
    same = sum(torch.equal(layer(maps), maps) for _ in range(400))
    assert 160 <= same <= 240


def test_the_ascent_hurts_and_leaves_all_else_alone(generator):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), AdvStyle(3, p=(0, 1, 0)), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    x, y = torch.randn(64, 1, 4, 4, generator=generator), torch.randint(2, (64,), generator=generator)

    def loss(output):
        return nn.functional.cross_entropy(output, y)

    def expected():
        with torch.no_grad():
            return torch.stack([loss(model(x)) for _ in range(50)]).mean()

    style = model[2]
    before = expected()
    statistics = model[1].running_mean.clone()
    weight = model[0].weight.clone()
    model[0].weight.grad = torch.ones_like(weight)
    sgd = torch.optim.SGD([style.mean_scale, style.std_scale], lr=1.0)
    adversarial_style_step(model, loss, x, sgd, steps=10, largest=5.0)
    assert_close(model[1].running_mean, statistics, rtol=0, atol=0)
    assert_close(model[0].weight, weight, rtol=0, atol=0)
    assert_close(model[0].weight.grad, torch.ones_like(weight), rtol=0, atol=0)
    assert bool((style.mean_scale >= 0).all())
    assert bool((style.mean_scale <= 5).all())
    assert expected() > before


def a_step(loss=torch.sum, rows=2):
    style = AdvStyle(2, p=(0, 1, 0))
    adversarial_style_step(style, loss, torch.rand(rows, 2, 3, 3), torch.optim.SGD(style.parameters()))


def a_step_without_style_layers():
    model = nn.Linear(1, 1)
    adversarial_style_step(model, torch.sum, torch.ones(1, 1), torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdvStyle(3, p=(1, 1, 1)), "p must be three shares"),
        (lambda: AdvStyle(0), "channels"),
        (lambda: AdvStyle(2)(torch.ones(1, 3, 2, 2)), r"\(n, 2, h, w\)"),
        (lambda: DSUStyle()(torch.ones(2, 3)), r"\(n, c, h, w\)"),
        (lambda: DSUStyle()(torch.ones(2, 3, 1, 1)), "two pixels"),
        (a_step_without_style_layers, "AdvStyle layers"),
        (lambda: a_step(rows=0), "loss must give one number that depends on the scales, of one row or more"),
        (lambda: a_step(loss=lambda y: y), r"loss must give one number.* got a tensor of shape \(2, 2, 3, 3\)"),
        (lambda: a_step(loss=lambda y: y @ y[:1, :1, :1]), "x must be what model and loss take, which fails"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
