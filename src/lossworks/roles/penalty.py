"""The role of a penalty on the model."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from lossworks.roles.part import Part

__all__ = ["Penalty"]


class Penalty(Part):
    """A penalty on the model itself or on its features, added to the risk.

    Class attributes:
        non_negative: Whether the penalty is by definition never below 0.
        reads_features: Whether the penalty reads ``features=``, the second of the pair that the model gives.
    """

    role = "penalty"
    non_negative: ClassVar[bool] = True
    reads_features: ClassVar[bool] = False

    def forward(self, model: nn.Module, *, features: Tensor | None = None) -> Float[Tensor, ""]:
        """The penalty, one number that is added to the risk."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(model) -> scalar")
