"""R: penalties on the model itself."""

from lossworks.penalties.conv_matrix import conv_orthogonality_bounds, conv_transform_matrix, orthogonal_conv_exists
from lossworks.penalties.magnitude import WeightMagnitudePenalty
from lossworks.penalties.orthogonal import OrthogonalConvPenalty

__all__ = [
    "OrthogonalConvPenalty",
    "WeightMagnitudePenalty",
    "conv_orthogonality_bounds",
    "conv_transform_matrix",
    "orthogonal_conv_exists",
]
