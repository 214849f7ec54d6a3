"""Class-balanced weights beside a model in half precision."""

import pytest
import torch
from torch import nn

from lossworks.weights import ClassBalanced


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["inverse", "effective"])
def test_counts_are_not_rounded_with_a_model_in_half_precision(method, dtype):
    counts = torch.tensor([900000.0, 120000.0, 7000.0, 400.0, 30.0])
    right = ClassBalanced(counts, method=method, beta=0.99)(torch.zeros(5), target=torch.arange(5))
    cast = nn.ModuleList([ClassBalanced(counts, method=method, beta=0.99)]).to(dtype)
    assert torch.equal(cast[0](torch.zeros(5), target=torch.arange(5)), right)
    assert torch.equal(cast.float()[0].class_counts, counts)
