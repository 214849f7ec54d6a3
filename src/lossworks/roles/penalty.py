"""The role of a penalty on the model."""

from jaxtyping import Float
from torch import Tensor, nn

from lossworks.roles.part import Part

__all__ = ["Penalty"]


class Penalty(Part):
    """A penalty on the model itself or on its features, added to the risk."""

    def forward(self, model: nn.Module, *, features: Tensor | None = None) -> Float[Tensor, ""]:
        """The penalty, one number that is added to the risk."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(model) -> scalar")
