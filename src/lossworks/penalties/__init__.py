"""R: a price on the model itself."""

from lossworks.penalties.magnitude import WeightMagnitude

__all__ = ["WeightMagnitude"]
