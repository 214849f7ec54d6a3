"""What the trainers' tests train, its objectives, and the same written out over a whole batch."""

import torch
from torch import nn
from torch.nn import functional as F

import lossworks as lw
from lossworks.losses import CrossEntropyLoss
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.roles import Weighting
from lossworks.weights import KLDRO, SampleWeights

CLASSES = 3
ROW_VALUES = torch.linspace(0.2, 3, 31).double()  # for as many rows as any of the tests has
OBJECTIVES = {
    "plain": lambda: lw.Objective(CrossEntropyLoss()),
    "fixed weights": lambda: lw.Objective(CrossEntropyLoss(), SampleWeights(ROW_VALUES)),
    "coupled": lambda: lw.Objective(CrossEntropyLoss(), KLDRO()),
    "penalty": lambda: lw.Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(0.1)]),
    "sum, penalty": lambda: lw.Objective(CrossEntropyLoss(reduction="sum"), penalties=[WeightMagnitudePenalty(0.1)]),
}


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES)).to(dtype)


def by_hand(name: str, model: nn.Module, x, target, index, own) -> torch.Tensor:
    kept = target != -100
    own = own[kept]
    losses = F.cross_entropy(model(x[kept]), target[kept], reduction="none")
    weights = {
        "fixed weights": (ROW_VALUES / ROW_VALUES.mean()).to(x.dtype)[index[kept]],
        "coupled": losses.detach().softmax(0) * len(losses),
    }.get(name, torch.ones_like(losses))
    price = 0.1 * sum(p.square().sum() for p in model.parameters() if p.ndim > 1) / 2 if "penalty" in name else 0.0
    return (own * weights * losses).sum() / (own.sum() if len(own) and "sum" not in name else 1) + price


class Hard(Weighting):
    """What a user writes with the defaults, by which its weights have mean 1 over the batch."""

    def forward(self, losses, *, index=None, group=None, target=None):
        return losses.detach().softmax(0) * len(losses)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
