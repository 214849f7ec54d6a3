import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lossworks.optim import AnnealedGradientNoise, gradient_noise_std


def test_the_noise_begins_at_eta_and_fades():
    stds = [gradient_noise_std(t, 0.3, 0.55) for t in range(100)]
    assert stds[0] ** 2 == pytest.approx(0.3)
    assert stds[9] ** 2 == pytest.approx(0.3 / 10**0.55)
    assert stds == sorted(stds, reverse=True)
    assert gradient_noise_std(50, 0.3, 0.0) == stds[0]


def test_noisy_gradients_have_the_clean_mean_and_that_variance():
    weight = nn.Parameter(torch.zeros(40_000))
    optimizer = AnnealedGradientNoise(
        torch.optim.SGD([weight], lr=1.0), eta=0.25, generator=torch.Generator().manual_seed(0)
    )
    for t in range(3):
        weight.data.zero_()
        weight.grad = torch.full_like(weight, 2.0)
        optimizer.step()
        assert abs(float(weight.detach().mean()) + 2) < 0.02
        assert float(weight.detach().std()) == pytest.approx(gradient_noise_std(t, 0.25), rel=0.02)
    assert optimizer.steps == 3


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.AdamW])
def test_without_noise_it_is_the_plain_optimizer(inner):
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    optimizer, plain = AnnealedGradientNoise(inner(model.parameters(), lr=0.1), eta=0), inner(twin.parameters(), lr=0.1)
    for _ in range(3):
        for m, o in ((model, optimizer), (twin, plain)):
            o.zero_grad()
            m(torch.ones(4, 3)).square().mean().backward()
            o.step()
    assert torch.equal(model.weight, twin.weight)


def test_closures_and_resumed_runs_draw_the_same_noise():
    def run(resume):
        weight, generator = nn.Parameter(torch.ones(5)), torch.Generator().manual_seed(3)
        optimizer = AnnealedGradientNoise(torch.optim.SGD([weight], lr=0.1, momentum=0.9), generator=generator)

        def closure():
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        for t in range(6):
            if resume and t == 3:
                state, drawn = copy.deepcopy(optimizer.state_dict()), generator.get_state()
                generator = torch.Generator()
                generator.set_state(drawn)
                optimizer = AnnealedGradientNoise(torch.optim.SGD([weight], lr=0.1, momentum=0.9), generator=generator)
                optimizer.load_state_dict(state)
            if resume:
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)
        return weight.detach()

    assert torch.equal(run(resume=True), run(resume=False))


def test_clips_before_the_noise():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 40.0])
    AnnealedGradientNoise(torch.optim.SGD([weight], lr=1.0), eta=0, clip=5.0).step()
    assert_close(weight.detach(), torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"eta": -1}, "eta"), ({"gamma": -1}, "gamma"), ({"clip": 0}, "clip"), ({"generator": 1}, "generator")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AnnealedGradientNoise(torch.optim.SGD([nn.Parameter(torch.ones(1))]), **options)
    with pytest.raises(ValueError, match="step"):
        gradient_noise_std(-1)


def test_a_noise_that_fades_at_once_is_zero():
    assert gradient_noise_std(5, 1.0, 5000.0) == 0.0
