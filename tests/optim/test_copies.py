"""A copy of a model and its wrapped optimizer goes on as these do, however it was made."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from lossworks.optim import GSAM, SAM, AnnealedGradientNoise


def _trained(model, optimizer, x):
    """The weights after two more steps."""
    for _ in range(2):

        def closure():
            optimizer.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        torch.manual_seed(1)
        optimizer.step(closure)
    return model.weight.detach().clone()


@pytest.mark.parametrize("wrapper", [AnnealedGradientNoise, SAM, GSAM])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_as_the_wrapped_optimizer_does(wrapper, copied, generator):
    x = torch.randn(5, 3, generator=generator)
    model = torch.nn.Linear(3, 1)
    optimizer = wrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    _trained(model, optimizer, x)
    other = copied((model, optimizer))
    assert_close(_trained(*other, x), _trained(model, optimizer, x), atol=0, rtol=0)
