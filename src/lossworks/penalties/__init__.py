"""R: a price on the model itself."""

from lossworks.penalties.conv_matrix import conv_orthogonality_bounds, conv_transform_matrix, orthogonal_conv_exists
from lossworks.penalties.magnitude import WeightMagnitude
from lossworks.penalties.orthogonal import OrthogonalConv

__all__ = [
    "OrthogonalConv",
    "WeightMagnitude",
    "conv_orthogonality_bounds",
    "conv_transform_matrix",
    "orthogonal_conv_exists",
]
