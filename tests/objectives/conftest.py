import pytest
import torch
from torch import nn


class Wide(nn.Module):
    """A model that gives its hidden layer beside its output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

    def forward(self, x):
        hidden = self.body(x).tanh()
        return self.head(hidden), hidden


@pytest.fixture
def wide():
    return Wide()
