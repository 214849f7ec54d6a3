import pytest
from torch import nn
from torch.testing import assert_close

from lossworks.penalties import WeightMagnitudePenalty


def test_gradient_is_weight_decay_on_weights_and_not_on_biases():
    model = nn.Linear(3, 2)
    WeightMagnitudePenalty(0.1)(model).backward()
    assert_close(model.weight.grad, 0.1 * model.weight.detach())
    assert model.bias.grad is None


def test_p_one_is_the_lasso():
    model = nn.Linear(3, 2)
    assert_close(WeightMagnitudePenalty(0.5, p=1.0)(model).item(), 0.5 * model.weight.abs().sum().item())


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="model must have a weight"):
        WeightMagnitudePenalty()(nn.ReLU())


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="strength"):
        WeightMagnitudePenalty(-1.0)
    with pytest.raises(ValueError, match="p must be >= 1"):
        WeightMagnitudePenalty(p=0.5)
