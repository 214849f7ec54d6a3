"""The whole objective: a loss, weights of the rows, a perturbation of the input, penalties on the model."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import (
    check_real,
    check_sample_weight,
    check_sequence,
    check_tensor,
    check_total,
    readable,
)
from lossworks.distributed import (
    ProcessGroup,
    gather_rows,
    own_rows,
    replicated,
    row_counts,
    sum_over_ranks,
)
from lossworks.objective.states import Draws, drawing, on_copies, resting
from lossworks.perturb.inference import ordinary
from lossworks.roles import (
    BatchLoss,
    Consistency,
    Loss,
    Part,
    Penalty,
    Perturbation,
    Weighting,
    about_kept,
    absent_rows,
    asked_once,
    cleared,
    held_back,
    inseparable,
    remembering,
    weighted_reduction,
)

__all__ = ["Featured", "Formula", "afresh"]


class Formula(nn.Module):
    r"""The formula on one batch: :math:`\sum_i w_i\, \ell(f_\theta(x_i + \delta_i), y_i) + R(\theta)`.

    It is the base of :class:`lossworks.Objective`, which documents the arguments and also takes a batch in parts.
    """

    def __init__(
        self,
        loss: Loss | BatchLoss,
        weights: Weighting | None = None,
        perturb: Perturbation | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__()
        if not isinstance(loss, (Loss, BatchLoss)):
            raise TypeError(f"loss must be a lossworks loss part, got {type(loss).__name__}")
        if weights is not None and not isinstance(weights, Weighting):
            raise TypeError(f"weights must be a lossworks weights part, got {type(weights).__name__}")
        if perturb is not None and not isinstance(perturb, Perturbation):
            raise TypeError(f"perturb must be a Perturbation, got {type(perturb).__name__}")
        check_sequence("penalties", penalties)
        for penalty in penalties:
            if not isinstance(penalty, Penalty):
                raise TypeError(f"penalties must be Penalty parts, got {type(penalty).__name__}")
        if isinstance(loss, BatchLoss) and weights is not None:
            raise TypeError(
                f"{type(loss).__name__} couples the whole batch: it has no rows for {type(weights).__name__} to weigh"
            )
        if isinstance(perturb, Consistency) and loss.couples_batch:
            raise TypeError(f"{type(loss).__name__} couples the whole batch: it has no rows to price {perturb}")
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
        row_weights: Float[Tensor, " n"] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Tensor:
        """The objective on this batch, or on this rank's or micro-batch's share of it.

        Args:
            model: The module that is called on ``x``.
            x: The inputs.
            target: The targets, as the loss takes them.
            index: The rows' numbers in the training data.
            group: The rows' groups.
            sample_weight: One weight per row, >= 0. A row of weight 0 is as if it were absent from the batch, for the
                loss and for all that compares rows; the model runs on it all the same.
            total: The number that ``mean`` divides by when the batch is a micro-batch: ``loss.total_of`` summed over
                all micro-batches and ranks. Penalties then count by this batch's share of it, so that the parts add up.
                If the total is 0, as all rows are ignored, penalties count in full in each part;
                ``Objective.micro_batches`` knows how many parts there are, and divides them.
            row_weights: The weights of these rows as :meth:`weigh` found them for the whole batch; ``weights`` is then
                not called again.
            process_group: The ranks that hold the other rows of the batch; all of them must call this. The means of the
                values and of their gradients over ranks are those of the whole batch. With ``reduction="none"`` each
                rank gets its own rows' weighted losses unchanged.
        """
        if row_weights is not None:
            check_sample_weight(row_weights, None, name="row_weights")
        x, target, index, group, sample_weight = map(ordinary, (x, target, index, group, sample_weight))
        model, target = self._watched(model), self._marked(target, sample_weight)
        changed = self._searched(model, x, target, index, sample_weight)
        output, price = self._outputs(afresh(model), x, changed, target)
        value = self.risk(
            output,
            target,
            price=price,
            index=index,
            group=group,
            sample_weight=sample_weight,
            total=total,
            row_weights=row_weights,
            process_group=process_group,
        )
        return self._with_penalties(value, model, *self._share(target, sample_weight, total, process_group))

    @property
    def scheduled(self) -> bool:
        """Whether any part of it has a schedule."""
        ignored = (Part.set_progress, Formula.set_progress)
        parts = (module for module in self.modules() if isinstance(module, (Part, Formula)))
        return any(type(part).set_progress not in ignored for part in parts)

    def set_progress(self, fraction: float) -> None:
        """Tell the parts that have a schedule the fraction of the training that is done, in [0, 1]."""
        for part in self.modules():
            if isinstance(part, Part):
                part.set_progress(fraction)

    def risk(
        self,
        output: Tensor,
        target: Tensor,
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        sample_weight: Float[Tensor, " n"] | None = None,
        total: float | Tensor | None = None,
        row_weights: Float[Tensor, " n"] | None = None,
        process_group: ProcessGroup | None = None,
        price: Float[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The weighted loss of given outputs: the objective without its perturbation and penalties.

        ``price`` is added to each row's loss and has the losses' shape.
        """
        if isinstance(self.loss, BatchLoss):
            self._refuse_rows(total, row_weights)
            if price is not None:
                raise ValueError(
                    f"price must be None: {type(self.loss).__name__} couples its batch and has no rows to price"
                )
            if process_group is None:
                return self.loss(output, target, sample_weight=sample_weight)
            return self.loss.over_ranks(output, target, sample_weight=sample_weight, process_group=process_group)
        if total is not None:
            check_total(total)
        if self.weights is None and row_weights is None and price is None:
            return self.loss(
                output, target, sample_weight=sample_weight, index=index, total=total, process_group=process_group
            )
        if process_group is not None and self.loss.couples_batch:
            counts = row_counts(len(output), process_group, output.device)
            columns = {"index": index, "group": group, "sample_weight": sample_weight, "row_weights": row_weights}
            given = {"output": output, "target": target, "price": price, **columns}
            whole = _gathered(given, process_group, counts)
            value = self.risk(**whole, total=total)
            return own_rows(value, process_group, counts) if self.loss.reduction == "none" else value
        with remembering(self):
            losses, rows = self.loss.weighted_rows(
                output, target, sample_weight=sample_weight, index=index, process_group=process_group
            )
            if price is not None:
                losses = losses + self._of_present(price.reshape(losses.shape), rows).to(losses.dtype)
            if row_weights is None:
                row_weights = self.weigh(
                    losses,
                    index=index,
                    group=group,
                    target=target,
                    sample_weight=sample_weight,
                    process_group=process_group,
                )
            check_tensor("row_weights", row_weights)
            if row_weights.numel() != losses.numel():
                raise ValueError(f"row_weights must have shape {tuple(losses.shape)}, got {tuple(row_weights.shape)}")
        # Weights are relative to the rows' own: the mean still divides by the rows, or fixed weights would cancel out.
        row_weights = row_weights.detach().reshape(losses.shape).to(losses.dtype)
        weighted = cleared(losses, row_weights == 0) * row_weights  # a weight of 0 leaves even an infinite loss out
        return weighted_reduction(weighted, rows, self.loss.reduction, total, process_group)

    def weigh(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
        sample_weight: Float[Tensor, " n"] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of the whole batch's rows, computed once so that each micro-batch can be given its own.

        With a ``process_group`` every rank calls the weighting on all ranks' rows, in the order of the ranks, and gets
        the weights of its own rows. If the weighting draws random numbers, the ranks' generators must be in the same
        state. A row whose target is the loss's ``ignore_index``, or whose sample weight is 0, has weight 0, and the
        weighting does not see it: it is not counted, has no place among the others and is not remembered (except under
        ``vmap`` and ``torch.compile``, where rows can't be left out: there it is a row of loss 0).

        Args:
            losses: The rows' losses; their gradient is not used.
            index: The rows' numbers in the training data.
            group: The rows' groups.
            target: The rows' targets.
            sample_weight: The rows' own weights, of which only the zeros are read.
            process_group: The ranks that hold the other rows of the batch.

        Returns:
            One weight per row, in the losses' shape.
        """
        flat = losses.detach().flatten()
        if self.weights is None:
            return torch.ones_like(losses)
        given = {"index": index, "group": group, "target": target}
        columns = self._flat_columns({name: column for name, column in given.items() if column is not None}, losses)
        kept = None
        if isinstance(self.loss, Loss) and target is not None:
            kept = self.loss.kind.kept(columns["target"], self.loss.ignore_index)
        if kept is not None:
            columns["target"] = torch.where(kept, columns["target"], 0)
        absent = absent_rows(None if sample_weight is None else sample_weight.flatten(), flat)
        if absent is not None:
            kept = ~absent if kept is None else kept & ~absent
        if kept is None or not (asked_once(self.weights) or readable(kept)):
            return self._ask(flat, columns, process_group).reshape(losses.shape)
        found = about_kept(lambda rows, some: self._ask(rows, some, process_group), flat, columns, kept)
        return found.reshape(losses.shape)

    def _flat_columns(self, columns: Mapping[str, Tensor], losses: Tensor) -> dict[str, Tensor]:
        """A weighting's columns, with one entry per loss; class probabilities and vectors keep their dimension."""
        flat = {}
        for name in ("index", "group", "target"):
            if name in columns:
                column = columns[name]
                check_tensor(name, column)
                vectors = column.is_floating_point() and column.ndim > 1
                if self.loss.kind.flat:
                    vectors = vectors and column.shape != losses.shape
                flat[name] = column.movedim(1, -1).flatten(0, -2) if vectors else column.flatten()
                rows, entries = losses.numel(), len(flat[name])
                if entries != rows:
                    raise ValueError(f"{name} must have one entry for each of {rows} losses, got {entries}")
        return flat

    def _ask(self, losses: Tensor, columns: dict[str, Tensor], process_group: ProcessGroup | None) -> Tensor:
        assert self.weights is not None
        if process_group is None or not asked_once(self.weights):
            return self.weights(losses, **columns).detach()
        counts = row_counts(len(losses), process_group, losses.device)
        whole = _gathered({"losses": losses, **columns}, process_group, counts)
        return own_rows(self.weights(**whole).detach(), process_group, counts)

    def _searched(
        self, model: nn.Module, x: Tensor, target: Tensor, index: Tensor | None, sample_weight: Tensor | None
    ) -> Tensor:
        """The perturbed inputs; where values may be read, rows of weight 0 stay as they are and take no draws."""
        absent = None
        if self.perturb is not None and isinstance(sample_weight, Tensor) and not inseparable(sample_weight):
            each = [column for column in (sample_weight, x, target) if isinstance(column, Tensor) and column.ndim]
            fits = len(each) == 3 and len({len(column) for column in each}) == 1
            absent = absent_rows(sample_weight) if fits else None
        if absent is None:
            return self._perturbed(model, x, target, index)
        rows = (~absent[:, None].flatten(1).all(dim=1)).nonzero().flatten()
        some = index[rows] if isinstance(index, Tensor) and len(index) == len(x) else index
        changed = self._perturbed(model, x[rows], target[rows], some)
        copies = x.reshape(len(x), *(1,) * (changed.ndim - x.ndim), *x.shape[1:]).expand(len(x), *changed.shape[1:])
        return copies.to(changed.dtype).index_copy(0, rows, changed)

    def _perturbed(self, model: nn.Module, x: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        if self.perturb is None:
            return x
        check_real("x", x)
        check_tensor("target", target)
        with resting(model):
            if not isinstance(self.perturb, Consistency):
                return self.perturb(lambda changed: self._seen(model(changed), target, index), x)
            with torch.no_grad():
                clean = model(x).detach()
            distance, classes = self.perturb.per_sample, self._classes(target)
            clean = self._counted(clean, target)
            return self.perturb(lambda changed: distance(self._counted(model(changed), target), clean, classes), x)

    def _outputs(
        self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor
    ) -> tuple[Tensor, Float[Tensor, " n"] | None]:
        """The outputs for the loss, and the price that is added to it."""
        if not isinstance(self.perturb, Consistency):
            return model(changed), None
        clean = model(x)
        moved, still = self._counted(model(changed), target), self._counted(clean, target)
        return clean, self.perturb.strength * self.perturb.per_sample(moved, still, self._classes(target))

    def _marked(self, target: Tensor, sample_weight: Tensor | None) -> Tensor:
        """The target in which rows of weight 0 are marked as ignored, or hold nothing, wherever they are looked at."""
        if not isinstance(self.loss, Loss) or not isinstance(sample_weight, Tensor):
            return target
        check_tensor("target", target)
        absent = absent_rows(sample_weight) if sample_weight.shape == self.loss.row_shape(target) else None
        return target if absent is None else self.loss.without(target, absent)

    def _counted(self, output: Tensor, target: Tensor) -> Tensor:
        """The outputs with 0 in the ignored rows, whatever these hold."""
        kept = self.loss.kind.kept(target, self.loss.ignore_index) if isinstance(self.loss, Loss) else None
        return output if kept is None else cleared(output, ~kept)

    def _of_present(self, price: Tensor, rows: Tensor | None) -> Tensor:
        """The prices of the rows that count, and 0 for the others."""
        return price if rows is None or rows.requires_grad else cleared(price, rows == 0)

    def _watched(self, model: nn.Module) -> nn.Module:
        """The model, which keeps the features that it gives beside its output, if a penalty reads them."""
        reads = any(penalty.reads_features for penalty in self.penalties)
        return Featured(model) if reads and not isinstance(model, Featured) else model

    def _classes(self, target: Tensor) -> Tensor:
        """The targets with a class in place of ``ignore_index``; the rows that it marks count nowhere."""
        return self.loss.kind.filled(target, self.loss.ignore_index) if isinstance(self.loss, Loss) else target

    def _share(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        total: float | Tensor | None,
        process_group: ProcessGroup | None,
    ) -> tuple[float | Tensor, float | Tensor]:
        """This batch's share of the penalties, as a quotient; equal on all ranks, as FSDP averages no shards."""
        if total is None or not self.penalties or isinstance(self.loss, BatchLoss):
            return 1, 1
        own = sum_over_ranks(self.loss.total_of(target, sample_weight), process_group)
        nothing = total == 0
        return own + nothing, total + nothing

    def _with_penalties(self, value: Tensor, model: nn.Module, part: float | Tensor, whole: float | Tensor) -> Tensor:
        if not self.penalties or getattr(self.loss, "reduction", "mean") == "none":
            return value
        features = model.features if isinstance(model, Featured) else None
        priced = model.model if isinstance(model, Featured) else model
        penalty = torch.stack(
            [
                replicated(penalty(priced, features=features) if penalty.reads_features else penalty(priced))
                for penalty in self.penalties
            ]
        ).sum()
        # Numbers of rows are integers, whose quotient would be rounded to float32.
        part, whole = (n.to(penalty.dtype) if isinstance(n, Tensor) else n for n in (part, whole))
        return value + (penalty * part / whole).to(value.dtype)

    def _refuse_rows(self, total: float | Tensor | None, row_weights: Tensor | None) -> None:
        for name, given in (("total", total), ("row_weights", row_weights)):
            if given is not None:
                raise ValueError(
                    f"{name} splits a mean over rows, and {type(self.loss).__name__} couples the whole batch: "
                    "use Objective.micro_batches"
                )

    def _seen(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        """The losses that an attack sees."""
        with self._unmoved(output):
            return self._losses(output, target, index)

    @contextlib.contextmanager
    def _unmoved(self, output: Tensor) -> Iterator[None]:
        """Restore at the end all that a loss changes when it is called: memories, buffers, random generators."""
        losses = [part for part in self.modules() if isinstance(part, (Loss, BatchLoss))]
        draws = any(getattr(part, "stochastic", False) for loss in losses for part in loss.modules())
        draws = draws and not torch.compiler.is_compiling()  # a compiler can't restore a generator's state
        with held_back(self), on_copies(*losses), drawing(Draws(output, self) if draws else None):
            yield

    def _losses(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        if isinstance(self.loss, BatchLoss):
            return self.loss(output, target).expand(len(output))
        losses, _ = self.loss.rows(output, target, index)
        return losses.flatten(1).sum(dim=1) if losses.ndim > 1 else losses


class Featured(nn.Module):
    """A model that gives a pair of output and features: it gives the output, and keeps the features of its first call.

    Attributes:
        model: The model itself.
        features: What it gave beside its output, or None before it is called.
    """

    features: Tensor | None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.features = model, None

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        pair = self.model(x)
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
            raise TypeError(
                f"model must give a pair (output, features) to a penalty that reads features, got {type(pair).__name__}"
            )
        output: Tensor = pair[0]
        self.features = pair[1] if self.features is None else self.features
        return output


def afresh(model: nn.Module) -> nn.Module:
    """The model, which has forgotten the features of earlier calls."""
    if isinstance(model, Featured):
        model.features = None
    return model


def _gathered(columns: Mapping[str, Tensor | None], process_group: ProcessGroup, counts: list[int]) -> dict[str, Any]:
    return {
        name: None if column is None else gather_rows(column, process_group, counts) for name, column in columns.items()
    }
