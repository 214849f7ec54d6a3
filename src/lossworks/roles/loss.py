"""The loss with one value a row."""

import functools
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lossworks.checks import (
    check_choice,
    check_floating,
    check_ignore_index,
    check_sample_weight,
    check_tensor,
    check_total,
    precise,
)
from lossworks.distributed import ProcessGroup, gather_rows, own_rows, row_counts
from lossworks.roles.closed_form import ClosedForm
from lossworks.roles.kinds import CLASSES, Kind, declare_kind
from lossworks.roles.part import AnyFunction, Part
from lossworks.roles.reduction import REDUCTIONS, check_no_nan, weighted_reduction
from lossworks.roles.remember import remembering

__all__ = ["Loss"]


def _of_floats(predict: AnyFunction) -> AnyFunction:
    """The same method, which checks what it is given first."""

    @functools.wraps(predict)
    def checked(self: Any, output: Tensor) -> Tensor:
        check_floating("output", output)
        return predict(self, output)

    return cast(AnyFunction, checked)


class Loss(Part):
    """A loss with one value a row: subclasses give :meth:`per_sample`, the base gives torch's conventions.

    The class attribute ``kind`` says which kind of target it takes:

    - ``"classes"``: output ``(n, C)`` or ``(n, C, d1, ...)``, target int64 ``(n,)`` or ``(n, d1, ...)``, with
      ``ignore_index``; where ``soft_targets`` is true also class probabilities in the output's shape.
    - ``"binary"``: output and target of one shape; the target is 0 or 1 (float, int64 or bool), the output a score
      whose sign is the answer.
    - ``"real"``: output and target of one shape, both floating-point.
    - ``"counts"``: output and target of one shape; the target is >= 0, the output the logarithm of the expected count.
    - ``"pairs"``: output and target of one shape, both scores of the model, with gradients in both; of the pair the
      output is the one that should be higher. No table has such a target.

    Half-precision outputs are computed and returned in float32.

    Class attributes:
        kind: A :class:`Kind`; a class body may give its name, see above.
        rowwise: Whether a row's value reads that row's logits alone, so that the fused path may take it in chunks.
        soft_targets: Whether class-probability targets are allowed.
        probabilistic: Whether :meth:`predict` estimates probabilities (a proper loss), or needs calibration first.
        surrogate_gradient: Whether its gradient is by definition not the derivative of its value.
    """

    kind: ClassVar[Kind] = CLASSES
    rowwise: ClassVar[bool] = False
    soft_targets: ClassVar[bool] = False
    probabilistic: ClassVar[bool] = False
    surrogate_gradient: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declare_kind(cls)
        if "per_sample" in cls.__dict__ and "closed_form" not in cls.__dict__:
            cls.closed_form = Loss.closed_form  # type: ignore[method-assign]  # what was inherited is of another loss
        if "predict" in cls.__dict__:
            cls.predict = _of_floats(cls.predict)  # type: ignore[method-assign]  # checked wherever it is overridden

    def __init__(self, reduction: str = "mean", *, ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self.ignore_index = check_ignore_index(ignore_index)

    def per_sample(self, output: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """One value a row, from flat rows whose shapes the base has checked."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample(output, target) -> (n,)")

    def closed_form(self, num_classes: int) -> ClosedForm | None:
        """The value and the gradient in a row of so many logits, written out for a class as target, if they are.

        This is the one way in which a loss offers its gradient. A subclass that gives another :meth:`per_sample` must
        give its own, and has none otherwise.
        """
        return None

    def recall(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """For a loss with a memory: what it reads of it for these rows, and would remember.

        Nothing that is read changes before :meth:`keep`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define recall(output, target, index) -> (n, ...)")

    def keep(self, index: Tensor, memory: Tensor) -> None:
        """Have the loss's memory be what :meth:`recall` gave for these rows."""
        (name,) = self.memories
        self.remember(name, index, memory)

    def output_size(self, num_classes: int = 1) -> int:
        """How many outputs a model needs for this loss."""
        return self.kind.outputs(num_classes)

    def predict(self, output: Tensor) -> Tensor:
        """Class probabilities ``(n, C)``, the probability of class 1 ``(n,)``, or the value ``(n,)``."""
        check_floating("output", output)
        return self.kind.predict(output)

    def forward(
        self,
        output: Float[Tensor, "n *rest"],
        target: Shaped[Tensor, "n *rest2"],
        *,
        sample_weight: Float[Tensor, "n *rest2"] | None = None,
        index: Int[Tensor, "n *rest2"] | None = None,
        total: float | Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Tensor:
        """The reduced loss.

        In data-parallel training ``process_group=torch.distributed.group.WORLD`` makes the gradient that it averages
        over ranks that of the whole batch, however many rows each rank has: a rank returns its own sum times the number
        of ranks over the sum of all ranks' weights. A loss that couples the batch is computed by every rank from all
        ranks' outputs, gathered with their gradients; if it draws, the ranks' generators must be in one state.

        Args:
            output: The model's outputs, see the class.
            target: The targets, see the class.
            sample_weight: One weight a row, >= 0; ``mean`` divides by their sum, as torch does with class weights.
            index: The rows' numbers in the training data, for losses with a memory per row.
            total: What ``mean`` divides by instead, when this batch is a part of a larger one: the sum of
                :meth:`total_of` over its parts on all ranks.
            process_group: The ranks that hold the other rows of one batch; all of them call this.
        """
        if process_group is not None and self.couples_batch:
            counts = row_counts(len(output), process_group, output.device)

            def all_ranks(rows: Tensor | None) -> Any:
                return None if rows is None else gather_rows(rows, process_group, counts)

            value = self.forward(
                all_ranks(output),
                all_ranks(target),
                sample_weight=all_ranks(sample_weight),
                index=all_ranks(index),
                total=total,
            )
            return own_rows(value, process_group, counts) if self.reduction == "none" else value
        check_floating("output", output)
        check_tensor("target", target)
        if total is not None:
            check_total(total)
        losses, weights = self.weighted_rows(
            output, target, sample_weight=sample_weight, index=index, process_group=process_group
        )
        return weighted_reduction(losses, weights, self.reduction, total, process_group)

    def total_of(self, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """What ``mean`` divides by for these targets: the number of rows kept, or the sum of their weights.

        A loss whose rows aren't its targets' entries says so here.
        """
        check_tensor("target", target)
        shape, kept = self.kind.row_shape(target), self.kind.kept(target, self.ignore_index)
        if sample_weight is not None:
            check_sample_weight(sample_weight, shape)
            exact = sample_weight.to(precise(sample_weight.device))
            return exact.sum() if kept is None else (exact * kept).sum()
        return torch.tensor(shape.numel(), device=target.device) if kept is None else kept.sum()

    def weighted_rows(
        self,
        output: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        index: Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Per-row losses and what they weigh in the mean; a memory per row is then the same on all ranks."""
        with remembering(self, process_group):
            losses, kept = self.rows(output, target, index)
            if sample_weight is not None:
                check_sample_weight(sample_weight, losses.shape)
        weights = kept.to(losses.dtype) if kept is not None else None
        if sample_weight is not None:
            weights = sample_weight.to(losses.dtype) if weights is None else sample_weight.to(losses.dtype) * weights
        return losses, weights

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Per-row losses in the target's shape, and which rows are kept (None where all are).

        A row that isn't kept has index -1 for the loss, so that it isn't remembered.
        """
        check_floating("output", output)
        check_tensor("target", target)
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        self.check_soft(target)
        flat, hard, kept, shape = self.kind.rows(output, target, self.ignore_index)
        extra = self._extra(index, shape)
        if kept is not None:
            extra = {name: torch.where(kept, index, -1) for name, index in extra.items()}
        losses = self.per_sample(flat, hard, **extra)
        if kept is not None:
            losses = torch.where(kept, losses, torch.zeros_like(losses))
            kept = kept.reshape(shape)
        check_no_nan(flat, losses)
        return losses.reshape(shape), kept

    def _extra(self, index: Tensor | None, shape: torch.Size) -> dict[str, Tensor]:
        if not self.needs_index:
            return {}
        if index is None:
            raise ValueError(
                f"{type(self).__name__} remembers a value per training row: give it index=, the rows' numbers"
            )
        check_tensor("index", index)
        if index.dtype != torch.int64 or index.shape != shape:
            raise ValueError(f"index must be int64 of shape {tuple(shape)}, got {index.dtype} {tuple(index.shape)}")
        return {"index": index.flatten()}

    def check_soft(self, target: Tensor) -> None:
        """Raise if these are class probabilities and the loss takes classes alone."""
        if self.kind.has_classes and target.is_floating_point() and not self.soft_targets:
            raise TypeError(f"{type(self).__name__} takes int64 classes as target, got {target.dtype}")
