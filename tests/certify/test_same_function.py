"""A certificate is of the function that the model computes, and leaves the model as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from lossworks.certify import (
    DualRandomizedSmoothing,
    RandomizedSmoothing,
    crown_bounds,
    interval_bounds,
    verified,
)

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def hooked(model):
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def before(model):
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 10,))


def before_all(model):
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 0.1,))


def patched(model):
    own = model[0].forward
    model[0].forward = lambda x: own(x) ** 3


@pytest.mark.parametrize("change", [hooked, before, before_all, patched])
@pytest.mark.parametrize(
    "certify", [interval_bounds, crown_bounds, lambda m, x, e: verified(m, x, torch.zeros(2).long(), e)]
)
def test_what_may_change_a_layers_value_is_refused(change, certify):
    model = small()
    change(model)
    with pytest.raises(TypeError, match=r"model must (have no forward hooks|compute what its layers do)"):
        certify(model, X, 0.1)


def test_a_hook_on_all_modules_is_refused():
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: None)
    try:
        with pytest.raises(TypeError, match="global forward hooks"):
            crown_bounds(small(), X, 0.1)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm, parametrizations.weight_norm])
def test_a_normalised_weight_is_certified_as_the_plain_layer_of_that_weight(wrap):
    model = small()
    plain = copy.deepcopy(model)
    wrap(model[0])
    model.train()(X)
    model.eval()
    with torch.no_grad():
        model(X)
        plain[0].weight.copy_(model[0].weight)
    model(X)  # whose weight now belongs to a graph, and cannot be copied
    target = plain(X).argmax(dim=1)
    for eps in (0.01, 0.1, 0.5):
        assert torch.equal(verified(model, X, target, eps), verified(plain, X, target, eps))
    for found, right in zip(crown_bounds(model, X, 0.1), crown_bounds(plain, X, 0.1), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "certify",
    [lambda model: verified(model, X, torch.zeros(len(X)).long(), 0.1), lambda model: crown_bounds(model, X, 0.1)],
)
def test_a_model_that_is_refused_is_left_as_it_was(certify):
    model = small()
    spectral_norm(model[0])
    model[1].register_forward_pre_hook(lambda module, inputs: None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"hook|evaluation mode"):
        certify(model.train())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_smoothing_asks_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    model[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    halves = DualRandomizedSmoothing(model, model, torch.tensor([True, True, False, False]), 0.5)
    for smoothed in (RandomizedSmoothing(model, 0.5), halves):
        smoothed.certify(X, n0=20, n=200)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    drawn = [
        RandomizedSmoothing(model, 0.5, generator=torch.Generator().manual_seed(0)).certify(X, n0=20, n=200)
        for _ in "ab"
    ]
    assert torch.equal(drawn[0].radius, drawn[1].radius)


def test_answers_that_are_nan_certify_nothing():
    def broken(x):
        return torch.full((len(x), 2), torch.nan)

    assert RandomizedSmoothing(broken, 0.5).certify(X, n0=20, n=200).answer.tolist() == [-1, -1]
    assert RandomizedSmoothing(broken, 0.5).predict(X, n=200).tolist() == [-1, -1]
