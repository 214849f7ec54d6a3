"""The inputs of metrics: numpy arrays or tensors, checked once and converted to float64."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lossworks.checks import check_tensor

Array: TypeAlias = npt.NDArray[Any] | Tensor
Floats: TypeAlias = npt.NDArray[np.float64]
Classes: TypeAlias = npt.NDArray[np.int64]


def as_floats(name: str, values: Any) -> Floats:
    """The values as a float64 array, if they are numbers without NaN."""
    array = _numbers(name, values)
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be an array of numbers, got {type(values).__name__}") from None
    if np.isnan(array).any():
        raise ValueError(f"{name} must have no NaN, got {int(np.isnan(array).sum())} of {array.size}")
    return array


def as_classes(name: str, values: Any) -> Classes:
    """The values as int64 classes, one a row, if they are whole numbers >= 0."""
    array = _numbers(name, values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {array.shape}")
    with np.errstate(invalid="ignore"):
        whole = array.dtype.kind in "biuf" and np.array_equal(array, array.astype(np.int64))
    if not whole:
        raise TypeError(f"{name} must be whole numbers, one class a row, got {array.dtype}")
    if array.min() < 0:
        raise ValueError(f"{name} must be classes >= 0, got {array.min()} in row {int(array.argmin())}")
    return array.astype(np.int64)


def _numbers(name: str, values: Any) -> npt.NDArray[Any]:
    """The values as an array, if they are not text, dates or complex numbers, and not ragged."""
    if isinstance(values, Tensor):
        check_tensor(name, values)
        if values.is_complex():
            raise TypeError(f"{name} must be an array of real numbers, got {values.dtype}")
        return values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be an array of numbers, got {type(values).__name__}") from None
    if array.dtype.kind not in "biufO":
        raise TypeError(f"{name} must be an array of numbers, got {type(values).__name__} of {array.dtype}")
    return array
