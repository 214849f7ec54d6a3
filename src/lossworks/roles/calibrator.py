"""The role of a calibrator, which corrects a trained model's outputs."""

from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_classes, check_floating, check_real
from lossworks.roles.part import Part

__all__ = ["Calibrator"]


class Calibrator(Part):
    """A map from a trained model's logits to logits whose softmax (or sigmoid) gives calibrated probabilities.

    Logits are ``(n, C)`` with classes ``(n,)``, or ``(n,)``, the logit of class 1, with targets 0 and 1. The fitted
    values are buffers.

    Class attributes:
        keeps_argmax: Whether the calibrated logits always have their largest entry where the logits have it.
    """

    role = "calibrator"
    keeps_argmax: ClassVar[bool] = True

    def fit(self, logits: Float[Tensor, "n *classes"], target: Int[Tensor, " n"]) -> Self:
        """Fit the calibrator on rows that the model was not trained on; return the calibrator itself."""
        raise NotImplementedError(f"{type(self).__name__} must define fit(logits, target) -> itself")

    def forward(self, logits: Float[Tensor, "n *classes"]) -> Float[Tensor, "n *classes"]:
        """The calibrated logits."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(logits) -> logits")


def class_logits(logits: Tensor, target: Tensor) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
    """Checked logits ``(n, C)`` in float64 and int64 classes; one logit becomes two that differ by it.

    A class may be masked by a logit of -inf in rows whose label it is not.
    """
    check_floating("logits", logits)
    check_real("target", target)
    if logits.ndim not in (1, 2) or not len(logits):
        raise ValueError(f"logits must have shape (n,) or (n, C) with n >= 1, got {tuple(logits.shape)}")
    if logits.ndim == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        target = _as_classes(target)
    logits = logits.detach().double()
    wrong = logits.isnan() | logits.isposinf()
    if bool(wrong.any()):
        row = int(wrong.any(dim=1).nonzero()[0])
        raise ValueError(f"logits must be finite, or -inf for a masked class, got NaN or Inf in row {row}")
    check_classes(logits, target)
    lost = logits.gather(1, target[:, None]).isneginf()[:, 0]
    if bool(lost.any()):
        row = int(lost.nonzero()[0])
        raise ValueError(f"logits must not mask a row's own label, that of row {row} is -inf")
    return logits, target


def _as_classes(target: Tensor) -> Int[Tensor, " n"]:
    """Zeros and ones of any dtype as int64 classes."""
    wrong = (target != 0) & (target != 1)
    if bool(wrong.any()):
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(f"target must be 0 or 1, got {target.flatten()[row].item():g} in row {row}")
    return target.long()
