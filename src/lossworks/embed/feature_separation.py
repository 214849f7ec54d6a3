"""Supervised contrastive loss: features of one class together, those of other classes apart."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_floating, check_positive, check_sample_weight, check_tensor, wide
from lossworks.roles import CLASSES, BatchLoss, check_no_nan, directions, present_rows, weighted_reduction

__all__ = ["FeatureSeparationLoss"]


class FeatureSeparationLoss(BatchLoss):
    r"""Supervised contrastive loss: pulls features of one class together and pushes those of other classes apart.

    .. math::
        \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log
        \frac{e^{\cos(h_i, h_p) / \tau}}{\sum_{a \ne i} e^{\cos(h_i, h_a) / \tau}}, \qquad
        P_i = \{p \ne i : y_p = y_i\}

    A row's loss is at least :math:`\log |P_i|`, and tends to that for small :math:`\tau` where all features of its
    class have one direction, which no other class has. A row that is alone in its class has loss 0, and counts among
    the other rows' negatives. A row of zeros has no direction: its cosines and its gradient are 0. The loss of the
    batch is the mean over its rows.

    It compares the rows of a batch: when the batch is split, :class:`lossworks.Objective` computes it on the gathered
    rows.

    Args:
        tau: The temperature :math:`\tau`, in units of the cosine, > 0.

    Shape:
        - output: features ``(n, d)``; target: classes ``(n,)`` int64, any integers. Returns ``()``; :meth:`per_row`
          gives ``(n,)``.

    Raises:
        ValueError: ``tau <= 0``, shapes that don't match, features that are NaN (the error names the row).
        TypeError: a target that is not int64.

    Use it beside cross-entropy, on the features before the last layer and on batches in which rare classes come more
    than once. Where a class has only about ten rows, it can outweigh everything else.

    Papers: khosla2020supcon, wang2021srat

    >>> loss = FeatureSeparationLoss()
    >>> loss(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0, 1, 1])) < 1e-3
    tensor(True)
    """

    papers = ("khosla2020supcon", "wang2021srat")
    helps = ("imbalance", "margins")
    settings = ({}, {"tau": 0.5})
    role = "embedding loss"
    kind = CLASSES

    def __init__(self, tau: float | Tensor = 0.1) -> None:
        super().__init__()
        self.tau = check_positive("tau", tau)

    def output_size(self, num_classes: int = 1) -> int:
        """The number of features, which the loss leaves open: as many as there are classes."""
        return num_classes

    def per_row(self, output: Float[Tensor, "n d"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row of this batch."""
        check_floating("output", output)
        check_tensor("target", target)
        if output.ndim != 2:
            raise ValueError(f"output must have shape (n, d), got {tuple(output.shape)}")
        if target.dtype != torch.int64:
            raise TypeError(f"target must be int64 classes, got {target.dtype}")
        if target.shape != output.shape[:1]:
            raise ValueError(f"target must have shape ({len(output)},), one class a row, got {tuple(target.shape)}")
        output = wide(output)
        turned = directions(output)
        others = ~torch.eye(len(output), dtype=torch.bool, device=output.device)
        # A finite number in place of minus infinity, so that a row without others has no NaN in its gradient.
        with torch.autocast(output.device.type, enabled=False):  # cosines in half precision are too coarse to divide
            cosines = turned @ turned.mT
        scores = torch.where(others, cosines / self.tau, torch.finfo(turned.dtype).min)
        own = (others & (target[:, None] == target)).to(scores.dtype)
        shares = own / own.sum(dim=1, keepdim=True).clamp(min=1)
        losses = -(shares * scores.log_softmax(dim=1)).sum(dim=1)
        check_no_nan(output, losses)
        return losses

    def forward(  # type: ignore[override]  # this loss names its inputs
        self,
        output: Float[Tensor, "n d"],
        target: Int[Tensor, " n"],
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        sample_weight, output, target = present_rows(sample_weight, output, target)
        losses = self.per_row(output, target)
        if sample_weight is not None:
            check_sample_weight(sample_weight, losses.shape)
            sample_weight = sample_weight.to(losses.dtype)
        return weighted_reduction(losses, sample_weight, "mean")
