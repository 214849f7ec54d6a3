"""Gradients of functions that read tensors made under ``torch.inference_mode()``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

__all__ = ["OrdinaryTensors", "ordinary", "said_of_inference"]


def ordinary(tensor: Any) -> Any:
    """The tensor itself, or outside inference mode a copy of one made there, as autograd cannot save that one.

    Anything else comes back as it is.
    """
    if not isinstance(tensor, Tensor) or torch.compiler.is_compiling():
        return tensor
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def said_of_inference(error: RuntimeError) -> bool:
    """Whether torch refuses a tensor because it was made under inference mode."""
    return "inference tensor" in str(error).lower()


class OrdinaryTensors(TorchFunctionMode):
    """Gives every function of torch copies of those of its arguments that were made under inference mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's result on ordinary tensors."""
        return func(*tree_map_only(Tensor, ordinary, args), **tree_map_only(Tensor, ordinary, kwargs or {}))
