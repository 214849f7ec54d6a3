"""The built-in networks are made of the layers that their documentation says."""

import pytest
import torch
from torch import nn

from lossworks.comparison.models.architecture import Architecture


def sizes(network):
    return [tuple(weight.shape) for name, weight in network.named_parameters() if name.endswith("weight")]


def test_the_mlp_has_two_hidden_layers_and_the_linear_model_none():
    assert sizes(Architecture("mlp", 5).sized((2, 3), 4).network()) == [(5, 6), (5, 5), (4, 5)]
    assert sizes(Architecture("linear", 5).sized((2, 3), 4).network()) == [(4, 6)]


@pytest.mark.parametrize(("width", "first", "groups"), [(16, 8, (8, 8, 8)), (6, 3, (1, 2, 2)), (1, 1, (1, 1, 1))])
def test_the_cnn_has_three_convolutions_of_which_two_halve_the_image(width, first, groups):
    network = Architecture("cnn", width).sized((3, 9, 12), 4).network()
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    shapes = [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in convolutions]
    assert shapes == [(3, first, 1), (first, width, 2), (width, width, 2)]
    assert tuple(layer.num_groups for layer in network if isinstance(layer, nn.GroupNorm)) == groups
    x = torch.zeros(2, 3, 9, 12)
    assert network[:9](x).shape == (2, width, 3, 3)
    assert network(x).shape == (2, 4)
