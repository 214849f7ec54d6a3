"""Training a segmentation model on pseudo-labels, weighted by the teacher's confidence and more along boundaries."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lossworks.checks import (
    check_choice,
    check_classes,
    check_floating,
    check_ignore_index,
    check_positive,
    check_probabilities,
    check_same_shape,
    check_sample_weight,
    check_tensor,
    wide,
)
from lossworks.roles import CLASSES, BatchLoss, check_no_nan, cite, cleared, present_rows

__all__ = ["BoundaryAwarePseudoLabelLoss", "ConfidenceWeightedCrossEntropyLoss", "sobel_boundary_mask"]

_ACROSS = ((0, 0, -1), (1, 0, -2), (2, 0, -1), (0, 2, 1), (1, 2, 2), (2, 2, 1))
"""Sobel's filter from left to right: row, column and factor."""


class ConfidenceWeightedCrossEntropyLoss(BatchLoss):
    r"""Cross-entropy on pseudo-labels, each weighted by its teacher's confidence in it.

    .. math::
        \frac{1}{|V|} \sum_{i \in V} c_i^\gamma\, \mathrm{CE}(z_i, \hat y_i), \qquad
        V = \{i : \hat y_i \ne \text{ignored}\}

    The sum is divided by the number of pixels (or rows) that are not ignored, and not by the sum of their confidences,
    so an unsure teacher makes the loss small. If all pixels are ignored, the loss is 0. It is a loss of the whole
    batch: when the batch is split, :class:`lossworks.Objective` computes it on the gathered rows.

    Args:
        gamma: The exponent :math:`\gamma` on the confidence, >= 0; with 0 all pixels count alike.
        ignore_index: The class of pixels that are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - confidence: c, in [0, 1], in the target's shape, 1 by default; sample_weight: ``(n,)``. Returns ``()``.

    Raises:
        ValueError: ``gamma < 0``, shapes that don't match, a class out of range, a confidence outside [0, 1].

    Use it where pseudo-labels come from a teacher that is at least roughly calibrated. Leave out pixels below
    :func:`lossworks.select.dynamic_confidence_threshold` by giving them the class ``ignore_index``.

    Papers: tarubinga2025cwbass

    >>> ConfidenceWeightedCrossEntropyLoss()(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 0.5]))
    tensor(0.5199)
    """

    papers = ("tarubinga2025cwbass",)
    helps = ("noisy labels",)
    settings = ({}, {"gamma": 2.0})
    kind = CLASSES

    def __init__(self, gamma: float | Tensor = 1.0, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.gamma = check_positive("gamma", gamma, allow_zero=True)
        self.ignore_index = check_ignore_index(ignore_index)

    def forward(  # type: ignore[override]  # this loss names its inputs
        self,
        output: Float[Tensor, "n classes *rest"],
        target: Int[Tensor, "n *rest"],
        confidence: Float[Tensor, "n *rest"] | None = None,
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        sample_weight, output, target, confidence = present_rows(sample_weight, output, target, confidence)
        losses, counts = self._pixels(output, target, sample_weight)
        return self._confident(losses, counts, confidence)

    def _confident(self, losses: Tensor, counts: Tensor, confidence: Tensor | None) -> Float[Tensor, ""]:
        if confidence is None:
            return _mean(losses, counts)
        check_probabilities("confidence", confidence)
        check_same_shape(losses, confidence, names=("target", "confidence"))
        return _mean(confidence.detach().to(losses.dtype) ** self.gamma * losses, counts)

    def _pixels(self, output: Tensor, target: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each pixel's cross-entropy and its weight: 1 or its row's sample weight, and 0 where it is ignored."""
        check_floating("output", output)
        check_tensor("target", target)
        if output.ndim < 2 or target.shape != output.shape[:1] + output.shape[2:]:
            raise ValueError(
                f"output must be (n, C, ...) and target (n, ...), got {tuple(output.shape)} and {tuple(target.shape)}"
            )
        output = wide(output)
        flat = output.movedim(1, -1).flatten(0, -2)
        check_classes(flat, target.flatten(), ignore_index=self.ignore_index)
        kept = target != self.ignore_index
        flat = cleared(flat, ~kept.flatten())
        losses = F.cross_entropy(flat, torch.where(kept, target, 0).flatten(), reduction="none").reshape(target.shape)
        losses = torch.where(kept, losses, torch.zeros_like(losses))
        check_no_nan(flat, losses)
        counts = kept.to(losses.dtype)
        if sample_weight is not None:
            check_sample_weight(sample_weight, target.shape[:1])
            counts = counts * sample_weight.to(losses.dtype).reshape(-1, *(1 for _ in target.shape[1:]))
        return losses, counts


class BoundaryAwarePseudoLabelLoss(ConfidenceWeightedCrossEntropyLoss):
    r"""Confidence-weighted cross-entropy on pseudo-labels, plus a second cross-entropy along class boundaries.

    .. math::
        \frac{1}{|V|} \sum_{i \in V} c_i^\gamma\, \mathrm{CE}(z_i, \hat y_i)
        + \frac{\mu}{|V \cap B|} \sum_{i \in V \cap B} \mathrm{CE}(z_i, \hat y_i)

    Here V is the set of pixels that aren't ignored, and B is the boundary. It is a loss of the whole batch: when the
    batch is split, :class:`lossworks.Objective` computes it on the gathered rows.

    Args:
        gamma: The exponent :math:`\gamma` on the confidence, >= 0; with 0 all pixels count alike.
        boundary_weight: The weight :math:`\mu` of the second term, >= 0.
        ignore_index: The class of pixels that are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - confidence: c, in [0, 1], and boundary: B, bool, both in the target's shape; sample_weight: ``(n,)``. If no
          boundary is given, it is :func:`sobel_boundary_mask` of the target where that is ``(n, h, w)``; for a target
          of another shape the boundary term is left out. Returns ``()``.

    Raises:
        ValueError: ``gamma < 0``, ``boundary_weight < 0``, shapes that don't match, a class out of range, a confidence
            outside [0, 1].

    Use it for segmentation with few labelled images. Compute the boundary from the pseudo-labels before any pixel is
    set to ``ignore_index``; otherwise the edges of the ignored regions count as boundaries too.

    Papers: tarubinga2025cwbass

    >>> output, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    >>> target[:, :, 2:] = 1
    >>> BoundaryAwarePseudoLabelLoss(boundary_weight=0.5)(output, target)
    tensor(1.0397)
    """

    settings = ({}, {"gamma": 2.0, "boundary_weight": 1.0})

    def __init__(
        self, gamma: float | Tensor = 1.0, boundary_weight: float | Tensor = 0.5, *, ignore_index: int = -100
    ) -> None:
        super().__init__(gamma, ignore_index=ignore_index)
        self.boundary_weight = check_positive("boundary_weight", boundary_weight, allow_zero=True)

    def forward(  # type: ignore[override]  # this loss names its inputs
        self,
        output: Float[Tensor, "n classes *rest"],
        target: Int[Tensor, "n *rest"],
        confidence: Float[Tensor, "n *rest"] | None = None,
        boundary: Bool[Tensor, "n *rest"] | None = None,
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        columns = (output, target, confidence, boundary)
        sample_weight, output, target, confidence, boundary = present_rows(sample_weight, *columns)
        losses, counts = self._pixels(output, target, sample_weight)
        value = self._confident(losses, counts, confidence)
        if boundary is None:
            if target.ndim != 3:
                return value
            boundary = sobel_boundary_mask(target)
        check_same_shape(target, boundary, names=("target", "boundary"))
        if boundary.dtype != torch.bool:
            raise TypeError(f"boundary must be bool, got {boundary.dtype}")
        return value + self.boundary_weight * _mean(losses, counts * boundary)


def _mean(losses: Tensor, counts: Tensor) -> Float[Tensor, ""]:
    total = counts.sum()
    return (losses * counts).sum() / torch.where(total > 0, total, torch.ones_like(total))


@cite("tarubinga2025cwbass")
def sobel_boundary_mask(labels: Int[Tensor, "n h w"], padding: str = "replicate") -> Bool[Tensor, "n h w"]:
    r"""Mark the pixels where Sobel's filters, applied to any class's indicator, see a change of class across or down.

    .. math:: B = \Big[\sum_k |S_x * [\hat y = k]| + |S_y * [\hat y = k]| > 0\Big]

    The filters read a pixel's neighbours and not the pixel itself, so of a line one pixel wide the pixels beside it are
    marked. Only the classes of the six neighbours that a filter reads are compared, so memory does not grow with the
    number of classes, any integers may be labels, and renaming the classes changes nothing.

    Args:
        labels: ``(n, h, w)`` int64.
        padding: What lies beyond the image: ``"replicate"`` repeats its border; ``"zeros"`` has no class there, as in
            the authors' code, so that the border of every image is a boundary.

    Raises:
        ValueError: labels are not ``(n, h, w)`` with h and w at least 1, an unknown ``padding``.
        TypeError: labels that are not int64.

    Papers: tarubinga2025cwbass

    >>> sobel_boundary_mask(torch.tensor([[[0, 0, 1, 1]] * 2]))[0, 0]
    tensor([False,  True,  True, False])
    """
    check_tensor("labels", labels)
    check_choice("padding", padding, ("replicate", "zeros"))
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.ndim != 3 or 0 in labels.shape[1:]:
        raise ValueError(f"labels must have shape (n, h, w) with h, w >= 1, got {tuple(labels.shape)}")
    height, width = labels.shape[1:]
    down, across = (torch.arange(-1, size + 1, device=labels.device) for size in (height, width))
    near = labels[:, down.clamp(0, height - 1)][:, :, across.clamp(0, width - 1)]
    inside = ((down >= 0) & (down < height))[:, None] & ((across >= 0) & (across < width))
    if padding == "replicate":
        inside = torch.ones_like(inside)

    def changes(taps: tuple[tuple[int, int, int], ...]) -> Tensor:
        """Whether any class has a response other than 0."""
        seen = [near[:, y : y + height, x : x + width] for y, x, _ in taps]
        there = [inside[y : y + height, x : x + width] for y, x, _ in taps]
        found = torch.zeros_like(labels, dtype=torch.bool)
        for label, known in zip(seen, there, strict=True):
            terms = zip(taps, seen, there, strict=True)
            response = torch.stack([tap[2] * ((other == label) & real) for tap, other, real in terms]).sum(dim=0)
            found |= known & (response != 0)
        return found

    return changes(_ACROSS) | changes(tuple((x, y, factor) for y, x, factor in _ACROSS))
