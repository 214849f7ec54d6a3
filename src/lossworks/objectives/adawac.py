"""AdaWAC: supervised loss for rows that have something to teach, consistency between two views for the others."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import (
    check_floating,
    check_int,
    check_positive,
    check_real,
    check_rows,
    check_same_shape,
    check_tensor,
    precise,
    readable,
)
from lossworks.distributed import ProcessGroup
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.objective.states import resting
from lossworks.perturb import GaussianNoise
from lossworks.roles import Consistency, Loss, Perturbation, check_no_nan, cite, cleared, weighted_reduction

__all__ = ["AdaWACObjective", "adawac_update"]

_LARGEST = 30.0
"""The largest absolute value of a remembered logit, so that any row can come back within some steps."""


class AdaWACObjective(Objective):
    r"""AdaWAC: weights each row's supervised loss against the consistency of its two views, by which is larger.

    .. math::
        \min_\theta \max_{\beta \in [0, 1]^N} \; \tfrac1n \sum_i \beta_i\, \bar\ell_i + (1 - \beta_i)\, r_i, \qquad
        \bar\ell_i = \tfrac12 \big(\ell(f_\theta(x_i'), y_i) + \ell(f_\theta(x_i''), y_i)\big), \qquad
        r_i = \lambda\, \overline{(h_\theta(x_i') - h_\theta(x_i''))^2}

    x' and x'' are two draws of one augmentation. The maximum over :math:`\beta` is approached by exponentiated gradient
    steps, :math:`\mathrm{logit}\, \beta_i \leftarrow \mathrm{logit}\, \beta_i + \eta\, (\bar\ell_i - r_i)`. A step is
    taken before the batch's loss is formed. The logits are remembered for each row, start at :math:`\beta = \tfrac12`,
    and stay within 30 of 0. Rows whose supervised loss stays high, such as images full of labels, go to supervision;
    rows whose supervised loss soon gets low, such as images of background, go to consistency. h is the second entry of
    the model's output where that is a pair ``(output, features)``, and otherwise the output itself.

    Call it like any :class:`~lossworks.Objective`, with ``index=``. The memory changes in ``train()`` mode only. A row
    that is in a batch twice moves once, by the mean of both, also when the batch is split over ranks or by
    ``micro_batches``. Where the augmentation is random, the parts of a batch that is split get other views than the
    whole batch would.

    Args:
        num_samples: N, the number of rows in the training data.
        lr_w: :math:`\eta`, in 1 / loss units, >= 0; 0 leaves all weights at one half.
        strength: :math:`\lambda`, in loss units per squared feature unit, >= 0.
        augment: The perturbation that makes a view; it must leave the target valid.
            :class:`~lossworks.perturb.GaussianNoise` by default.
        loss: :math:`\ell`; cross-entropy by default. It is averaged over the pixels of a row.

    Buffers:
        loss.logit: ``(N,)`` float64, :math:`\mathrm{logit}\, \beta` of each row.

    Shape:
        - model: from x to what ``loss`` takes, ``(n, ...)``, or to a pair of that and features ``(n, ...)``; index:
          ``(n,)`` int64 in ``[0, N)``, or -1 for a row that is not remembered. Returns ``()``, or ``(n,)`` with
          ``reduction="none"``.

    Raises:
        ValueError: ``num_samples < 1``, ``lr_w < 0``, ``strength < 0``, index missing or out of range.
        TypeError: ``loss`` or ``augment`` of another role, or a loss that has a memory or couples the rows of its
            batch.

    Use it for segmentation where labels are dense in some images and absent in others. A row with a
    wrong label keeps a high supervised loss, and so goes to supervision. For losses of another form, :meth:`step` gives
    the weights alone.

    Papers: dong2023adawac

    >>> objective = AdaWACObjective(num_samples=4)
    >>> x, target, index = torch.ones(4, 3), torch.tensor([0, 1, 1, 0]), torch.arange(4)
    >>> objective(nn.Linear(3, 2), x, target, index=index) > 0
    tensor(True)
    """

    papers = ("dong2023adawac",)
    helps = ("shift", "imbalance")
    needs = ("num_samples",)
    settings = ({}, {"lr_w": 0.1})
    loss: "_MixtureLoss"
    perturb: Perturbation

    def __init__(
        self,
        num_samples: int,
        lr_w: float | Tensor = 1.0,
        strength: float | Tensor = 1.0,
        augment: Perturbation | None = None,
        *,
        loss: Loss | None = None,
    ) -> None:
        loss = CrossEntropyLoss() if loss is None else loss
        if not isinstance(loss, Loss) or loss.needs_index or loss.couples_batch:
            raise TypeError(f"loss must be a Loss whose rows stand alone, got {type(loss).__name__}")
        augment = GaussianNoise() if augment is None else augment
        if not isinstance(augment, Perturbation) or isinstance(augment, Consistency):
            raise TypeError(f"augment must be a Perturbation of the input, got {type(augment).__name__}")
        super().__init__(_MixtureLoss(num_samples, lr_w, strength, loss), perturb=augment)

    def step(
        self, index: Int[Tensor, " n"], sup: Float[Tensor, " n"], reg: Float[Tensor, " n"]
    ) -> Float[Tensor, "n 2"]:
        r"""Take a step in ``train()`` mode and return the weights :math:`(\beta, 1 - \beta)` of these rows.

        Args:
            index: The rows' numbers in the training data.
            sup: The rows' supervised losses. No gradient goes through them, or through the weights.
            reg: The rows' consistency losses. No gradient goes through them either.
        """
        return self.loss.step(index, sup, reg)

    def _perturbed(self, model: nn.Module, x: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        check_real("x", x)
        check_tensor("target", target)
        with resting(model):
            views = [self.perturb(lambda view: self._seen(_pair(model(view))[0], target, index), x) for _ in range(2)]
        return torch.stack(views, dim=1)

    def _losses(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        return _row_means(*self.loss.loss.rows(output, target))[0]

    def _outputs(self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor) -> tuple[Any, None]:
        found = _pair(model(changed.flatten(0, 1)))
        return _Views(*(part.unflatten(0, (len(x), 2)) for part in found)), None


class _Views(NamedTuple):
    """The outputs and features of two views of each row, stacked along the second dimension."""

    output: Tensor
    features: Tensor


def _pair(output: Any) -> tuple[Tensor, Tensor]:
    """The model's output and its features; the features are the output itself where the model gives no pair."""
    found = output if isinstance(output, tuple) else (output, output)
    if len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
        raise TypeError(f"model must give a tensor or a pair (output, features), got {type(output).__name__}")
    return found


def _row_means(losses: Tensor, kept: Tensor | None) -> tuple[Float[Tensor, " n"], Tensor | None]:
    """The mean over each row's entries that count, and which rows have any."""
    if losses.ndim == 1:
        return losses, kept
    if kept is None:
        return losses.flatten(1).mean(dim=1), None
    counts = kept.flatten(1).sum(dim=1)
    return losses.flatten(1).sum(dim=1) / counts.clamp(min=1), counts > 0


class _MixtureLoss(Loss):
    """The loss of two views, mixed with their consistency by remembered weights."""

    needs_index = True
    memories: ClassVar[Mapping[str, str]] = {"logit": "mean"}
    logit: Tensor

    def __init__(self, num_samples: int, lr_w: float | Tensor, strength: float | Tensor, loss: Loss) -> None:
        super().__init__(loss.reduction, ignore_index=loss.ignore_index)
        self.num_samples = check_int("num_samples", num_samples, low=1, high=2**31 - 1)
        self.lr_w = check_positive("lr_w", lr_w, allow_zero=True)
        self.strength = check_positive("strength", strength, allow_zero=True)
        self.loss = loss
        self.logit = torch.zeros(num_samples, dtype=torch.float64)

    @torch.no_grad()
    def step(self, index: Tensor, sup: Tensor, reg: Tensor) -> Float[Tensor, "n 2"]:
        """See :meth:`AdaWACObjective.step`."""
        check_floating("sup", sup)
        check_floating("reg", reg)
        check_same_shape(sup, reg, names=("sup", "reg"))
        if sup.ndim != 1:
            raise ValueError(f"sup must have shape (n,), got {tuple(sup.shape)}")
        self._check_index(index, len(sup))
        logit = torch.where(index >= 0, self.logit[index.clamp(min=0)], 0)
        if self.training:
            logit = (logit + self.lr_w * (sup.double() - reg.double())).clamp(-_LARGEST, _LARGEST)
            self.remember("logit", index, logit)
        return torch.stack([logit, -logit], dim=1).sigmoid().to(sup.dtype)

    def _check_index(self, index: Tensor | None, rows: int) -> None:
        if index is None:
            raise ValueError("AdaWACObjective remembers a value per training row: give it index=, the rows' numbers")
        check_tensor("index", index)
        if index.dtype != torch.int64 or index.shape != (rows,):
            raise ValueError(f"index must be int64 of shape ({rows},), got {index.dtype} {tuple(index.shape)}")
        check_rows("index", index, self.num_samples, low=-1)

    def rows(self, output: Any, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One loss per row of data, and which rows have a target at all."""
        if not isinstance(output, _Views):
            raise TypeError(
                f"output must be of two views, as AdaWACObjective itself makes them, got {type(output).__name__}"
            )
        views, features = output
        losses, kept = self.loss.rows(views[:, 0], target)
        sup, kept = _row_means((losses + self.loss.rows(views[:, 1], target)[0]) / 2, kept)
        check_floating("features", features)
        first, second = features.to(torch.promote_types(features.dtype, sup.dtype)).unbind(dim=1)
        if kept is not None:
            first, second = (cleared(part, ~kept) for part in (first, second))
        gone = first.isneginf() & second.isneginf()  # a class that is masked in both views is alike in them
        reg = self.strength * (first - second).masked_fill(gone, 0).square().flatten(1).mean(dim=1).to(sup.dtype)
        check_no_nan(features, reg)
        self._check_index(index, len(sup))
        assert index is not None
        weights = self.step(index if kept is None else torch.where(kept, index, -1), sup, reg)
        mixed = weights[:, 0] * sup + weights[:, 1] * reg
        return (mixed if kept is None else torch.where(kept, mixed, torch.zeros_like(mixed))), kept

    def without(self, target: Tensor, absent: Tensor) -> Tensor:
        """The inner loss's target in which absent rows hold nothing."""
        return self.loss.without(target, absent)

    def _present_rows(
        self, output: Any, target: Tensor, index: Tensor | None, absent: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        present = _Views(*(cleared(part, absent) for part in output))
        index = None if index is None else torch.where(absent, -1, index)
        return self.rows(present, self.without(target, absent), index)

    def row_shape(self, target: Tensor) -> torch.Size:
        """One row for each entry of the first axis."""
        return target.shape[:1]

    def forward(
        self,
        output: Any,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        index: Tensor | None = None,
        total: float | Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Tensor:
        """The reduced loss of the two views."""
        losses, weights = self.weighted_rows(
            output, target, sample_weight=sample_weight, index=index, process_group=process_group
        )
        return weighted_reduction(losses, weights, self.reduction, total, process_group)

    def total_of(self, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The number of rows of data that have a target, or the sum of their weights."""
        rows = torch.ones(len(target), dtype=torch.bool, device=target.device)
        kept = self.loss.kind.kept(target, self.ignore_index)
        if kept is not None:
            rows = kept[:, None].flatten(1).any(dim=1)
        return rows.sum() if sample_weight is None else (rows * sample_weight.to(precise(rows.device))).sum()

    def output_size(self, num_classes: int = 1) -> int:
        """As many outputs as the inner loss needs."""
        return self.loss.output_size(num_classes)

    def predict(self, output: Tensor) -> Tensor:
        """The prediction of the inner loss."""
        return self.loss.predict(output)


@cite("dong2023adawac", helps=("shift", "imbalance"))
def adawac_update(
    weights: Float[Tensor, "n 2"], sup: Float[Tensor, " n"], reg: Float[Tensor, " n"], lr: float | Tensor = 1.0
) -> Float[Tensor, "n 2"]:
    r"""AdaWAC's weight update: one step of exponentiated gradient ascent on each row's pair of weights.

    .. math:: (w_0, w_1) \leftarrow (w_0\, e^{\eta\, \ell},\; w_1\, e^{\eta\, r}) / Z

    Args:
        weights: ``(n, 2)``, pairs >= 0 with the sum 1.
        sup: ``(n,)``, the supervised losses.
        reg: ``(n,)``, the consistency losses.
        lr: :math:`\eta`, in 1 / loss units, >= 0.

    Returns:
        The new weights ``(n, 2)``, pairs with the sum 1, without a gradient.

    Raises:
        ValueError: ``lr < 0``, shapes that don't match, pairs that don't sum to 1.

    Papers: dong2023adawac

    >>> adawac_update(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([[0.5000, 0.5000]])
    """
    check_floating("weights", weights)
    check_floating("sup", sup)
    check_floating("reg", reg)
    check_same_shape(sup, reg, names=("sup", "reg"))
    check_positive("lr", lr, allow_zero=True)
    if sup.ndim != 1:
        raise ValueError(f"sup must have shape (n,), got {tuple(sup.shape)}")
    if weights.shape != (len(sup), 2):
        raise ValueError(f"weights must have shape ({len(sup)}, 2), got {tuple(weights.shape)}")
    if readable(weights) and weights.numel():
        low, off = float(weights.detach().min()), float((weights.detach().sum(dim=1) - 1).abs().max())
        if not (low >= 0 and off < 1e-3):
            raise ValueError(f"weights must be pairs >= 0 with the sum 1, got a sum off by {off:g}, the least {low:g}")
    losses = torch.stack([sup, reg], dim=1).detach()
    return (weights.detach().log() + lr * losses).softmax(dim=1)
