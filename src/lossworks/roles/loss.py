"""The role of a loss with one value per row."""

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
    readable,
    wide,
)
from lossworks.distributed import ProcessGroup, gather_rows, own_rows, row_counts
from lossworks.roles.closed_form import ClosedForm
from lossworks.roles.kinds import CLASSES, Kind, TakesKind
from lossworks.roles.part import AnyFunction, Part
from lossworks.roles.reduction import (
    REDUCTIONS,
    absent_rows,
    check_no_nan,
    cleared,
    tame,
    weighted_reduction,
)
from lossworks.roles.remember import remembering
from lossworks.roles.weighting import inseparable

__all__ = ["Loss"]


def _of_floats(predict: AnyFunction) -> AnyFunction:
    """The same method, which first checks its argument."""

    @functools.wraps(predict)
    def checked(self: Any, output: Tensor) -> Tensor:
        check_floating("output", output)
        return predict(self, output)

    return cast(AnyFunction, checked)


class Loss(TakesKind, Part):
    """A loss with one value per row: subclasses define :meth:`per_sample`, this class adds torch's conventions.

    The class attribute ``kind`` says which kind of target it takes:

    - ``"classes"``: output ``(n, C)`` or ``(n, C, d1, ...)``, target int64 ``(n,)`` or ``(n, d1, ...)``, with
      ``ignore_index``; where ``soft_targets`` is true also class probabilities in the output's shape.
    - ``"binary"``: output and target of one shape; the target is 0 or 1 (float, int64 or bool), the output a score
      whose sign is the answer.
    - ``"real"``: output and target of one shape, both floating-point.
    - ``"counts"``: output and target of one shape; the target is >= 0, the output the logarithm of the expected count.
    - ``"pairs"``: output and target of one shape, both scores of the model, with gradients in both; the output should
      be the higher one of the pair. No table has such a target.

    Half-precision outputs are computed and returned in float32.

    Class attributes:
        kind: A :class:`Kind`; a class body may give its name, see above.
        rowwise: Whether a row's value depends on that row's logits alone, so that the fused path may compute it in
            chunks of rows.
        soft_targets: Whether class-probability targets are allowed.
        probabilistic: Whether :meth:`predict` estimates probabilities (a proper loss); otherwise they need calibration.
        surrogate_gradient: Whether the loss's gradient is by definition not the derivative of its value.
        masks: Whether the loss has a limit for a class whose logit goes to -inf, so that classes may be masked by -inf.
        reads_offset: Whether a number that is added to all logits of a row changes the loss by definition.
    """

    kind: ClassVar[Kind] = CLASSES
    rowwise: ClassVar[bool] = False
    soft_targets: ClassVar[bool] = False
    probabilistic: ClassVar[bool] = False
    surrogate_gradient: ClassVar[bool] = False
    masks: ClassVar[bool] = True
    reads_offset: ClassVar[bool] = False
    role = "loss"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "per_sample" in cls.__dict__ and "closed_form" not in cls.__dict__:
            cls.closed_form = Loss.closed_form  # type: ignore[method-assign]  # the inherited one is another loss's
        if "predict" in cls.__dict__:
            cls.predict = _of_floats(cls.predict)  # type: ignore[method-assign]  # checked wherever it is overridden

    def __init__(self, reduction: str = "mean", *, ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self.ignore_index = check_ignore_index(ignore_index)

    def per_sample(self, output: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """One value per row, from flat rows whose shapes this class has already checked."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample(output, target) -> (n,)")

    def closed_form(self, num_classes: int) -> ClosedForm | None:
        """The loss's value and gradient as formulas, for class targets and this number of logits; None if it has none.

        This is the only way in which a loss offers its gradient. A subclass that overrides :meth:`per_sample` has no
        closed form unless it overrides this method too.
        """
        return None

    def recall(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """For a loss with a memory: what the loss reads of its memory for these rows, and will store for them.

        The memory that is read does not change before :meth:`keep` is called.
        """
        raise NotImplementedError(f"{type(self).__name__} must define recall(output, target, index) -> (n, ...)")

    def keep(self, index: Tensor, memory: Tensor) -> None:
        """Store in the loss's memory what :meth:`recall` gave for these rows."""
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

        In data-parallel training give ``process_group=torch.distributed.group.WORLD``. The gradient averaged over ranks
        is then that of the whole batch, however many rows each rank has: each rank returns its own sum, times the
        number of ranks, divided by the sum of all ranks' weights. A loss that couples the batch is computed by every
        rank from all ranks' outputs, gathered with their gradients; if it draws random numbers, the ranks' generators
        must be in the same state.

        Args:
            output: The model's outputs, see the class.
            target: The targets, see the class.
            sample_weight: One weight per row, >= 0; ``mean`` divides by their sum, as torch does with class weights. A
                row of weight 0 is as if it were absent, and may hold any output. Only if the weights require a gradient
                is its loss computed, since that is the gradient.
            index: The rows' numbers in the training data, for losses with a memory per row.
            total: The number that ``mean`` divides by when this batch is a part of a larger one: the sum of
                :meth:`total_of` over all its parts on all ranks.
            process_group: The ranks that hold the other rows of the same batch; all of them must call this.

        Returns:
            ``()``, or one loss per row with ``reduction="none"``.
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
        """The number that ``mean`` divides by for these targets: the number of rows kept, or the sum of their weights.

        A loss whose rows are not the entries of its target overrides this, or :meth:`row_shape`.
        """
        check_tensor("target", target)
        shape, kept = self.row_shape(target), self.kind.kept(target, self.ignore_index)
        if sample_weight is not None:
            check_sample_weight(sample_weight, shape)
            exact = sample_weight.to(precise(sample_weight.device))
            return exact.sum() if kept is None else (exact * kept).sum()
        return torch.tensor(shape.numel(), device=target.device) if kept is None else kept.sum()

    def row_shape(self, target: Tensor) -> torch.Size:
        """The shape of the rows of this target, which is that of their losses and of the sample weights."""
        return self.kind.row_shape(target)

    def without(self, target: Tensor, absent: Tensor) -> Tensor:
        """The target in which absent rows hold nothing that counts or that could be refused."""
        return self.kind.without(target, absent, self.ignore_index)

    def weighted_rows(
        self,
        output: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        index: Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Per-row losses and their weights in the mean; a memory per row is afterwards the same on all ranks."""
        check_tensor("target", target)
        absent, fits = None, isinstance(sample_weight, Tensor) and sample_weight.shape == self.row_shape(target)
        if fits and sample_weight is not None and check_sample_weight(sample_weight, sample_weight.shape):
            absent = absent_rows(sample_weight, output)
        with remembering(self, process_group):
            if absent is None:
                losses, kept = self.rows(output, target, index)
            else:
                losses, kept = self._present_rows(output, target, index, absent)
            if sample_weight is not None and not fits:
                check_sample_weight(sample_weight, losses.shape)
        weights = kept.to(losses.dtype) if kept is not None else None
        if sample_weight is not None:
            if fits and sample_weight.requires_grad:  # a loss that is not finite is no slope in its weight
                absent = absent_rows(sample_weight, losses)
            losses = losses if absent is None else cleared(losses, absent)
            weights = sample_weight.to(losses.dtype) if weights is None else sample_weight.to(losses.dtype) * weights
        return losses, weights

    def _present_rows(
        self, output: Tensor, target: Tensor, index: Tensor | None, absent: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What :meth:`rows` gives for the rows that are present; an absent row holds nothing and its index is -1.

        If the loss compares rows, absent ones are left out, where values may be read.
        """
        if self.couples_batch and absent.ndim == 1 and not inseparable(absent):
            rows = (~absent).nonzero().flatten()
            some, kept = self.rows(output[rows], target[rows], None if index is None else index[rows])
            losses = some.new_zeros(len(absent)).index_copy(0, rows, some)
            return losses, None if kept is None else torch.zeros_like(absent).index_copy(0, rows, kept)
        index = None if index is None else torch.where(absent, -1, index)
        if not self.kind.has_classes or target.is_floating_point():  # otherwise they are ignored, and cleared as such
            output = cleared(output, absent)
        return self.rows(output, self.without(target, absent), index)

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Per-row losses in the target's shape, and which rows are kept (None where all are).

        A row that is not kept gets outputs of 0 and the index -1, so that whatever it holds is neither seen nor
        remembered.
        """
        check_floating("output", output)
        check_tensor("target", target)
        output = wide(output)
        self.check_soft(target)
        flat, hard, kept, shape = self.kind.rows(output, target, self.ignore_index)
        extra = self._extra(index, shape)
        ignored = None if kept is None or (readable(kept) and bool(kept.all())) else ~kept
        if ignored is not None:
            flat = flat if tame(flat, ignored) else cleared(flat, ignored)
            extra = {name: torch.where(ignored, -1, index) for name, index in extra.items()}
        losses = self.per_sample(flat, hard, **extra)
        if ignored is not None:
            losses = torch.where(ignored, 0, losses)
        check_no_nan(flat, losses)
        return losses.reshape(shape), None if kept is None else kept.reshape(shape)

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
        """Raise if these are class probabilities and the loss takes only classes."""
        if self.kind.has_classes and target.is_floating_point() and not self.soft_targets:
            raise TypeError(f"{type(self).__name__} takes int64 classes as target, got {target.dtype}")
