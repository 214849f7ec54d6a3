"""Adversarial training for classes of unequal size."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossworks.checks import (
    check_amounts,
    check_between,
    check_classes,
    check_floating,
    check_positive,
    check_sample_weight,
    wide,
)
from lossworks.distributed import ProcessGroup
from lossworks.embed import FeatureSeparationLoss
from lossworks.objective import Objective
from lossworks.perturb import PGD
from lossworks.roles import (
    CLASSES,
    BatchLoss,
    Consistency,
    Perturbation,
    check_no_nan,
    present_rows,
    weighted_reduction,
)
from lossworks.weights import effective_number_weights

__all__ = ["SRATObjective"]


class SRATObjective(Objective):
    r"""SRAT: adversarial training that weights rare classes up and keeps the features of the classes apart.

    .. math::
        \tfrac1n \sum_i w_{y_i} \mathrm{CE}\big(f_\theta(x_i'), y_i\big) + \lambda\, \ell^{sep}_i(h_\theta(x')), \qquad
        x_i' = \arg\max_{\|x' - x_i\| \le \varepsilon} \mathrm{CE}\big(f_\theta(x'), y_i\big)

    with :math:`w_k` the inverse effective number of the class's rows, scaled to mean 1 over the classes, and
    :math:`\ell^{sep}` the :class:`~lossworks.embed.FeatureSeparationLoss` of the attacked rows' features h. The attack
    maximises the cross-entropy alone. h is the second entry of the model's output where that is a pair
    ``(logits, features)``, and otherwise the logits themselves.

    Call it like any :class:`~lossworks.Objective`. It couples the rows of its batch: a batch that is split over ranks
    or by ``micro_batches`` is gathered and seen as a whole. Where the attack draws random starting points, a batch that
    is split gets other ones than the whole batch.

    Args:
        class_counts: ``(C,)``, the number of rows of each class in the training data.
        lam: :math:`\lambda`, the weight of the separation, >= 0; 0 is adversarial training with class weights.
        tau: The temperature of the separation, a difference of cosines, > 0.
        beta: The parameter of the effective number, in [0, 1]: with 0 all classes have weight 1, with 1 each class is
            weighted by its inverse frequency.
        attack: The perturbation that looks for x'; :class:`~lossworks.perturb.PGD` by default.

    Shape:
        - model: from x to logits ``(n, C)``, or a pair of them and features ``(n, d)``; target: classes ``(n,)``,
          int64. Returns ``()``.

    Raises:
        ValueError: ``lam < 0``, ``tau <= 0``, ``beta`` outside [0, 1], counts that are negative or all zero, logits of
            another number of classes.
        TypeError: ``attack`` is no perturbation of the input.

    Use it where robust accuracy on rare classes counts, with batches in which rare classes come more than once. Take a
    small ``lam`` where a class has few rows, as the separation can outweigh the class weights.

    Papers: wang2021srat

    >>> objective = SRATObjective(torch.tensor([30.0, 10.0]), attack=PGD(0.1, steps=2))
    >>> objective(nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("wang2021srat",)
    helps = ("attacks", "imbalance")
    needs = ("class_counts",)
    settings = ({}, {"lam": 0.1})
    loss: "_SeparatedLoss"

    def __init__(
        self,
        class_counts: Float[Tensor, " classes"],
        lam: float | Tensor = 1.0,
        tau: float | Tensor = 0.1,
        beta: float | Tensor = 0.9999,
        attack: Perturbation | None = None,
    ) -> None:
        attack = PGD() if attack is None else attack
        if not isinstance(attack, Perturbation) or isinstance(attack, Consistency):
            raise TypeError(f"attack must be a Perturbation of the input, got {type(attack).__name__}")
        super().__init__(_SeparatedLoss(class_counts, lam, tau, beta), perturb=attack)

    def forward(self, model: nn.Module, x: Tensor, target: Tensor, **columns: Any) -> Tensor:
        """The objective on this batch, see :meth:`Objective.forward`."""
        return super().forward(_Joined(model), x, target, **columns)

    def micro_batches(
        self,
        model: nn.Module,
        parts: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
        process_group: ProcessGroup | None = None,
    ) -> Iterator[Tensor]:
        """The objective on a batch that comes in parts, see :meth:`Objective.micro_batches`."""
        return super().micro_batches(_Joined(model), parts, process_group)

    def _losses(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        return cross_entropy(self.loss.split(output, target)[0], target, reduction="none")


class _Joined(nn.Module):
    """The model, with its features beside its logits in one matrix."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(x)
        return torch.cat(output, dim=1) if isinstance(output, tuple) else output


class _SeparatedLoss(BatchLoss):
    """Weighted cross-entropy plus the separation of the features that stand beside the logits."""

    kind = CLASSES
    class_weights: Tensor

    def __init__(self, class_counts: Tensor, lam: float | Tensor, tau: float | Tensor, beta: float | Tensor) -> None:
        super().__init__()
        check_amounts("class_counts", class_counts, "C", least=2)
        check_between("beta", beta, 0, 1)
        self.class_weights = effective_number_weights(class_counts, beta)
        self.lam = check_positive("lam", lam, allow_zero=True)
        self.separation = FeatureSeparationLoss(tau)

    def split(self, output: Tensor, target: Tensor) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n d"]]:
        """The logits and the features; the features are the logits themselves where the model gives none.

        A class that is masked by -inf is 0 in such features.
        """
        check_floating("output", output)
        classes = len(self.class_weights)
        if output.ndim != 2 or output.shape[1] < classes:
            raise ValueError(f"output must be logits (n, {classes}) of the model, got {tuple(output.shape)}")
        output = wide(output)
        logits = output[:, :classes]
        check_classes(logits, target)
        return logits, output[:, classes:] if output.shape[1] > classes else logits.masked_fill(logits.isneginf(), 0)

    def forward(  # type: ignore[override]  # what a batch of it is has names
        self,
        output: Tensor,
        target: Int[Tensor, " n"],
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        sample_weight, output, target = present_rows(sample_weight, output, target)
        logits, features = self.split(output, target)
        losses = self.class_weights.to(logits.dtype)[target] * cross_entropy(logits, target, reduction="none")
        losses = losses + self.lam * self.separation.per_row(features, target)
        check_no_nan(output, losses)
        if sample_weight is not None:
            check_sample_weight(sample_weight, losses.shape)
            sample_weight = sample_weight.to(losses.dtype)
        return weighted_reduction(losses, sample_weight, "mean")
