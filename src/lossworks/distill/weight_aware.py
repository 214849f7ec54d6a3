"""Training on labelled rows, and on unlabelled ones weighted by how far their pseudo-labels can be trusted."""

from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import (
    check_classes,
    check_floating,
    check_positive,
    check_same_shape,
    readable,
)
from lossworks.losses.classes.cross_entropy import CrossEntropyLoss
from lossworks.roles import CLASSES, BatchLoss, weighted_reduction

__all__ = ["WeightAwareDistillationLoss"]


class WeightAwareDistillationLoss(BatchLoss):
    r"""Cross-entropy on labelled rows, plus weighted cross-entropy on unlabelled rows with a teacher's pseudo-labels.

    .. math::
        \tfrac1m \sum_{i \le m} \mathrm{CE}(z_i, y_i)
        + \frac{\lambda}{n} \sum_{j \le n} \omega_j\, \mathrm{CE}(z'_j, \hat y_j)

    The weights :math:`\omega_j` and pseudo-labels :math:`\hat y_j` are those of :class:`lossworks.select.WADWeights`.
    It is a loss of the whole batch: when the batch is split, :class:`lossworks.Objective` computes it on the gathered
    rows.

    Args:
        strength: :math:`\lambda`, >= 0, how much the unlabelled rows count compared with the labelled ones.

    Shape:
        - output: logits ``(m, C)``; target: classes ``(m,)`` int64; sample_weight: ``(m,)``.
        - unlabelled: logits ``(n, C)``; pseudo: classes ``(n,)`` int64; weights: ``(n,)``, >= 0, all 1 by default.
          Returns ``()``; without unlabelled rows it is cross-entropy.

    Raises:
        ValueError: ``strength < 0``, shapes that don't match, a class out of range, a weight below 0, ``pseudo``
            missing beside ``unlabelled``.

    Use it where there are many unlabelled rows and some belong to no known class. If the teacher knows the classes only
    from the labelled rows, plain self-training does as well.

    Papers: du2023wad

    >>> import torch
    >>> loss, target = WeightAwareDistillationLoss(), torch.tensor([0, 1])
    >>> loss(torch.zeros(2, 2), target, torch.zeros(2, 2), target, torch.tensor([1.0, 0.0]))
    tensor(1.0397)
    """

    papers = ("du2023wad",)
    helps = ("shift", "outliers")
    settings = ({}, {"strength": 0.5})
    role = "distillation loss"
    kind = CLASSES

    def __init__(self, strength: float | Tensor = 1.0) -> None:
        super().__init__()
        self.strength = check_positive("strength", strength, allow_zero=True)

    def forward(  # type: ignore[override]  # this loss names its inputs
        self,
        output: Float[Tensor, "m classes"],
        target: Int[Tensor, " m"],
        unlabelled: Float[Tensor, "n classes"] | None = None,
        pseudo: Int[Tensor, " n"] | None = None,
        weights: Float[Tensor, " n"] | None = None,
        *,
        sample_weight: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        check_classes(output, target)
        value = CrossEntropyLoss()(output, target, sample_weight=sample_weight)
        if unlabelled is None:
            return value
        if pseudo is None:
            raise ValueError("pseudo must be given beside unlabelled, got None")
        check_classes(unlabelled, pseudo)
        if weights is not None:
            check_floating("weights", weights)
            check_same_shape(pseudo, weights, names=("pseudo", "weights"))
            if readable(weights) and not bool((weights >= 0).all()):
                raise ValueError(f"weights must be >= 0, got {float(weights.detach().min()):g}")
            weights = weights.detach()
        others = CrossEntropyLoss(reduction="none")(unlabelled, pseudo, sample_weight=weights)
        return value + self.strength * weighted_reduction(others, None, "mean")
