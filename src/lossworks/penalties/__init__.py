"""R: a price on the model itself."""

from lossworks.penalties.magnitude import WeightMagnitude
from lossworks.penalties.orthogonal import OrthogonalConv

__all__ = ["OrthogonalConv", "WeightMagnitude"]
