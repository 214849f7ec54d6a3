"""Penalties on the size of the weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import check_positive
from lossworks.distributed import replicated
from lossworks.roles import Penalty


class WeightMagnitudePenalty(Penalty):
    r"""Weight decay (or lasso) on weights of two or more axes: :math:`R(\theta) = \lambda \sum_j |\theta_j|^p / p`.

    With ``p=2`` its gradient is that of weight decay, :math:`\lambda \theta`; with ``p=1`` it is the lasso. Parameters
    of fewer than two dimensions (biases, scales of normalisation layers) are not penalised, as is usual.

    Args:
        strength: :math:`\lambda`, >= 0, in loss units.
        p: The power of the weights' absolute values, >= 1.

    Shape:
        - model: any module; returns ``()``.

    Raises:
        ValueError: ``strength < 0``, ``p < 1``, or a model without a weight of two or more dimensions.

    Use it where the weight decay should be part of the objective. AdamW's decoupled weight decay is not the same thing.

    Papers: krogh1991weightdecay

    >>> WeightMagnitudePenalty(2.0)(nn.Linear(2, 1, bias=False)) >= 0
    tensor(True)
    """

    papers = ("krogh1991weightdecay",)
    helps = ("overfitting",)
    settings = ({}, {"strength": 1e-3}, {"p": 1.0})

    def __init__(self, strength: float | Tensor = 1e-4, p: float | Tensor = 2.0) -> None:
        super().__init__()
        self.strength = check_positive("strength", strength, allow_zero=True)
        self.p = check_positive("p", p)
        if isinstance(p, (int, float)) and p < 1:
            raise ValueError(f"p must be >= 1, got {p:g}")

    def forward(self, model: nn.Module, *, features: Tensor | None = None) -> Float[Tensor, ""]:
        """The penalty of this model's weights."""
        sizes = [replicated((weight.abs() ** self.p).sum()) for weight in model.parameters() if weight.ndim >= 2]
        if not sizes:
            raise ValueError(f"model must have a weight of two or more dimensions, {type(model).__name__} has none")
        return self.strength * torch.stack(sizes).sum() / self.p
