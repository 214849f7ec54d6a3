"""The formula, composed: a loss, the weights on it, the worst case it guards against, the penalty on the model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import check_sample_weight
from lossworks.roles import BatchLoss, Loss, Penalty, Perturbation, Weighting, weighted_reduction

__all__ = ["Objective"]


class Objective(nn.Module):
    r"""What training minimises: :math:`\sum_i w_i\, \ell(f_\theta(x_i + \delta_i), y_i) + R(\theta)`.

    Args:
        loss: :math:`\ell`. Its ``reduction`` says whether the weighted losses are averaged or summed.
        weights: :math:`w`, given the losses and whatever it needs of ``index``, ``group``, ``target``. The losses are
            detached: weights are the adversary's or the user's choice, and by the envelope theorem their own gradient
            does not count.
        perturb: :math:`\delta`, given the risk as a function of the input.
        penalties: The terms of :math:`R`, summed.

    Shape:
        - model: called on ``x``, gives what ``loss`` takes. Returns ``()``, or the rows' shape with
          ``reduction="none"``, which leaves the penalties out, as they belong to no row.

    Raises:
        TypeError: a part stands in the wrong role; a ``Weighting`` is combined with a ``BatchLoss``.
        ValueError: an argument that a part needs is missing.

    >>> from lossworks.losses import CrossEntropyLoss
    >>> objective = Objective(CrossEntropyLoss())
    >>> objective(nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    def __init__(
        self,
        loss: Loss | BatchLoss,
        weights: Weighting | None = None,
        perturb: Perturbation | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__()
        for name, part, role in (("loss", loss, (Loss, BatchLoss)), ("weights", weights, Weighting)):
            if part is not None and not isinstance(part, role):
                raise TypeError(f"{name} must be a lossworks {name} part, got {type(part).__name__}")
        if perturb is not None and not isinstance(perturb, Perturbation):
            raise TypeError(f"perturb must be a Perturbation, got {type(perturb).__name__}")
        for penalty in penalties:
            if not isinstance(penalty, Penalty):
                raise TypeError(f"penalties must be Penalty parts, got {type(penalty).__name__}")
        if isinstance(loss, BatchLoss) and weights is not None:
            raise TypeError(
                f"{type(loss).__name__} couples the whole batch: it has no rows for {type(weights).__name__} to weigh"
            )
        self.loss = loss
        self.weights = weights
        self.perturb = perturb
        self.penalties = nn.ModuleList(penalties)

    def forward(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *features"],
        target: Tensor,
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        sample_weight: Float[Tensor, " n"] | None = None,
        total: float | Tensor | None = None,
    ) -> Tensor:
        """The objective on this batch; ``total`` is what ``mean`` divides by when the batch is a micro-batch."""
        if self.perturb is not None:
            x = self.perturb(lambda changed: self._losses(model(changed), target, index), x)
        value = self.risk(model(x), target, index=index, group=group, sample_weight=sample_weight, total=total)
        if not self.penalties or getattr(self.loss, "reduction", "mean") == "none":
            return value
        return value + torch.stack([penalty(model) for penalty in self.penalties]).sum()

    def risk(
        self,
        output: Tensor,
        target: Tensor,
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        sample_weight: Float[Tensor, " n"] | None = None,
        total: float | Tensor | None = None,
    ) -> Tensor:
        """The weighted loss of given outputs: the formula without its perturbation and penalties."""
        if isinstance(self.loss, BatchLoss):
            return self.loss(output, target, sample_weight=sample_weight)
        if self.weights is None:
            return self.loss(output, target, sample_weight=sample_weight, index=index, total=total)
        losses, kept = self.loss.rows(output, target, index)
        rows = losses.new_ones(losses.shape) if kept is None else kept.to(losses.dtype)
        if sample_weight is not None:
            check_sample_weight(sample_weight, losses.shape)
            rows = rows * sample_weight.to(losses.dtype)
        # Weights are relative to the rows' own: the mean still divides by the rows, or fixed weights would cancel.
        weights = self.weights(losses.detach().flatten(), index=index, group=group, target=_rows(target, kept)).detach()
        weighted = losses * weights.reshape(losses.shape)
        return weighted_reduction(weighted, rows, self.loss.reduction, total)

    def _losses(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        if isinstance(self.loss, BatchLoss):
            return self.loss(output, target).expand(len(output))
        losses, _ = self.loss.rows(output, target, index)
        return losses.reshape(len(output), -1).sum(dim=1)


def _rows(target: Tensor, kept: Tensor | None) -> Tensor:
    flat = target.flatten()
    return flat if kept is None else torch.where(kept.flatten(), flat, 0)
