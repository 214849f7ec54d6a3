"""The formula, composed: a loss, the weights on it, the worst case it guards against, the penalty on the model."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import (
    check_choice,
    check_real,
    check_sample_weight,
    check_sequence,
    check_tensor,
    check_total,
    shown,
)
from lossworks.distributed import (
    ProcessGroup,
    gather_rows,
    own_rows,
    replicated,
    row_counts,
    sum_over_ranks,
    world_size,
)
from lossworks.objective.states import Draws, drawing, on_copies, resting
from lossworks.roles import (
    BatchLoss,
    Consistency,
    Loss,
    Offers,
    Part,
    Penalty,
    Perturbation,
    Weighting,
    about_kept,
    asked_once,
    held_back,
    remember_over_ranks,
    remembering,
    weighted_reduction,
)

__all__ = ["ARGUMENTS", "Objective", "Taken"]

ARGUMENTS = ("x", "target", "index", "group", "sample_weight")
Taken = TypeVar("Taken")


class Objective(nn.Module):
    r"""What training minimises: :math:`\sum_i w_i\, \ell(f_\theta(x_i + \delta_i), y_i) + R(\theta)`.

    The value and the gradient are those of the whole batch however it is split, where the method allows it at all.

    Under ``DistributedDataParallel`` or FSDP, which average gradients over ranks, name the group (uneven and empty
    shares are right)::

        group = torch.distributed.group.WORLD
        objective(model, x, target, index=index, process_group=group).backward()
        optimizer.step()

    Over micro-batches (gradient accumulation), on one process or with the group as well::

        for value in objective.micro_batches(model, parts, process_group=group):
            value.backward()
        optimizer.step()

    or, where the weights don't look at the whole batch, with its total::

        total = sum(objective.loss.total_of(target) for _, target in parts)
        for x, target in parts:
            objective(model, x, target, total=total).backward()

    Args:
        loss: :math:`\ell`. Its ``reduction`` says whether the weighted losses are averaged or summed.
        weights: :math:`w`, given the losses and whatever it needs of ``index``, ``group``, ``target``. The losses are
            detached: weights are the adversary's or the user's choice, and by the envelope theorem their own gradient
            does not count.
        perturb: :math:`\delta`, given the risk as a function of the input. It sees the rows of its own rank and
            micro-batch only. While it looks, the model is in evaluation mode, so that rows don't depend on each other
            (batch normalisation takes its running statistics, dropout rests) and buffers stay as they are; so do the
            loss's memories and buffers and (but under ``torch.compile``) the random generators that it draws from.
            What the perturbation itself draws moves torch's generator, and further where a rank has more rows: a loss
            that draws then needs a generator of its own. A :class:`~lossworks.roles.Consistency` adds a price to each
            row's clean loss.
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

    papers: ClassVar[tuple[str, ...]]  # of the objectives that come ready made
    helps: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    needs: ClassVar[tuple[str, ...]] = ()

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
        """The objective on this batch, or this batch's share of it.

        Args:
            model: Called on ``x``.
            x: The inputs.
            target: The targets, see the loss.
            index: The rows' numbers in the training data.
            group: The rows' groups.
            sample_weight: One weight a row, >= 0.
            total: What ``mean`` divides by when the batch is a micro-batch (``loss.total_of`` summed over all of them,
                and over all ranks); penalties then count by this batch's share of it, so that the parts add up. Where
                it is 0, as all rows are ignored, they count whole, in each part anew; :meth:`micro_batches` knows how
                many parts there are, and splits them.
            row_weights: The weights of these rows as :meth:`weigh` found them on the whole batch; ``weights`` is then
                not asked again.
            process_group: The ranks that hold the other rows of the batch; all of them call this. The mean over ranks
                of the values, and of their gradients, is that of the whole batch. With ``reduction="none"`` a rank
                gets its own rows' weighted losses as they are.
        """
        if row_weights is not None:
            check_sample_weight(row_weights, None, name="row_weights")
        output, price = self._outputs(model, x, self._perturbed(model, x, target, index), target)
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
        """Whether anything in it goes by how far the training is."""
        ignored = (Part.set_progress, Objective.set_progress)
        parts = (module for module in self.modules() if isinstance(module, (Part, Objective)))
        return any(type(part).set_progress not in ignored for part in parts)

    def set_progress(self, fraction: float) -> None:
        """Tell the parts that have a schedule how far the training is, in [0, 1]."""
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
        """The weighted loss of given outputs: the formula without its perturbation and penalties.

        ``price`` is what comes on top of each row's loss, in the losses' shape.
        """
        if isinstance(self.loss, BatchLoss):
            self._refuse_rows(total, row_weights)
            if price is not None:
                raise ValueError(f"price is one number a row, and {type(self.loss).__name__} has no rows to price")
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
                losses = losses + price.reshape(losses.shape).to(losses.dtype)
            if row_weights is None:
                row_weights = self.weigh(losses, index=index, group=group, target=target, process_group=process_group)
            check_tensor("row_weights", row_weights)
            if row_weights.numel() != losses.numel():
                raise ValueError(f"row_weights must have shape {tuple(losses.shape)}, got {tuple(row_weights.shape)}")
        # Weights are relative to the rows' own: the mean still divides by the rows, or fixed weights would cancel.
        weighted = losses * row_weights.detach().reshape(losses.shape).to(losses.dtype)
        return weighted_reduction(weighted, rows, self.loss.reduction, total, process_group)

    def weigh(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of the whole batch's rows, found once so that its micro-batches can be given theirs.

        With a ``process_group`` the weighting is asked on all ranks' rows, in the order of the ranks, by each of them,
        and each gets its own rows' weights; a weighting that draws needs the ranks' generators in one state. A row
        whose target is the loss's ``ignore_index`` has weight 0, and a weighting that couples the batch does not see it
        (except under ``vmap`` and ``torch.compile``, where rows can't be left out: there it is a row of loss 0).

        Args:
            losses: The rows' losses; their gradient is not used.
            index: The rows' numbers in the training data.
            group: The rows' groups.
            target: The rows' targets.
            process_group: The ranks that hold the other rows of the batch.

        Returns:
            One weight a row, in the losses' shape.
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
        if kept is None or not asked_once(self.weights):
            return self._ask(flat, columns, process_group).reshape(losses.shape)
        found = about_kept(lambda rows, some: self._ask(rows, some, process_group), flat, columns, kept)
        return found.reshape(losses.shape)

    def micro_batches(
        self,
        model: nn.Module,
        parts: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
        process_group: ProcessGroup | None = None,
    ) -> Iterator[Tensor]:
        """The objective on a batch that comes in parts: a value for each, to be sent backward before the next is taken.

        The values add up to the whole batch's (in the mean over ranks, with a ``process_group``), and so do the
        gradients. Only one part's graph is alive at a time. Where the weights or the loss look at the whole batch, all
        parts are first run without gradients, and run again with the same random draws and from the same buffers
        (dropout is right, its generator being torch's or an attribute of a module; batch normalisation is another model
        on each part whatever an objective does). What a part remembers per training row is written once, as if the
        batch had come whole. ::

            for value in objective.micro_batches(model, parts):
                value.backward()
            optimizer.step()

        Under ``DistributedDataParallel`` all parts but the last belong under ``model.no_sync()``, the taking of a value
        as well as its ``backward``: the wrapper decides in the forward pass whether gradients will be averaged. ::

            values = objective.micro_batches(model, parts, process_group=group)
            with model.no_sync():
                for _ in range(len(parts) - 1):
                    next(values).backward()
            for value in values:
                value.backward()

        Args:
            model: Called on each part's ``x``.
            parts: ``(x, target)``, or a mapping with ``x``, ``target`` and what is needed of ``index``, ``group`` and
                ``sample_weight``. At least one on each rank; ranks may have different numbers of them.
            process_group: The ranks that hold the other rows of the batch.

        Raises:
            ValueError: no parts, an argument that isn't known, ``reduction="none"``, sample weights that require grad,
                or targets that do where the loss couples its batch.
        """
        if isinstance(parts, (str, Mapping)) or not isinstance(parts, Iterable):
            raise TypeError(f"parts must be a sequence of micro-batches, got {shown(parts)}")
        batches = [arguments_of(part) for part in parts]
        if not batches:
            raise ValueError("parts must hold at least one micro-batch, of no rows if need be")
        if any(batch.keys() != batches[0].keys() for batch in batches):
            raise ValueError(f"parts must all have {', '.join(batches[0])}, got others in some of them")
        for batch in batches:
            for name, column in batch.items():
                if name != "x":
                    check_tensor(name, column)
        if getattr(self.loss, "reduction", "mean") == "none":
            raise ValueError("reduction must be 'mean' or 'sum' for micro-batches to add up, got 'none'")
        for name in ("sample_weight", "target") if self.loss.couples_batch else ("sample_weight",):
            if name in batches[0] and any(batch[name].requires_grad for batch in batches):
                raise ValueError(
                    f"{name} must not require grad in micro-batches, as its gradient is of the whole batch: "
                    "call the objective on that, or detach it"
                )
        if self.loss.couples_batch:
            yield from self._of_outputs(model, batches, process_group)
        else:
            yield from self._of_rows(model, batches, process_group)

    def _of_rows(
        self, model: nn.Module, batches: list[dict[str, Tensor]], process_group: ProcessGroup | None
    ) -> Iterator[Tensor]:
        """Micro-batches of a loss with rows: a part needs the total and its rows' weights of the others, no more."""
        assert isinstance(self.loss, Loss)
        own = torch.stack([self.loss.total_of(b["target"], b.get("sample_weight")).detach() for b in batches]).sum()
        total = sum_over_ranks(own, process_group)
        total = torch.where(total > 0, total, torch.ones_like(total))
        draws: list[Draws | None] = [None] * len(batches)
        weights: list[Tensor | None] = [None] * len(batches)
        if self.weights is not None and asked_once(self.weights):
            outputs, draws = self._first_pass(model, batches, self._priced_losses)
            flat = [self._flat_columns(batch, rows) for batch, rows in zip(batches, outputs, strict=True)]
            for batch, rows in zip(batches, outputs, strict=True):
                if "sample_weight" in batch:
                    check_sample_weight(batch["sample_weight"], rows.shape)
            columns = {name: torch.cat([each[name] for each in flat]) for name in flat[0]}
            found = self.weigh(torch.cat([rows.flatten() for rows in outputs]), **columns, process_group=process_group)
            weights = list(found.split([rows.numel() for rows in outputs]))
        offers: Offers = []
        for number, batch in enumerate(batches):
            x = batch["x"]
            given: dict[str, Any] = {name: column for name, column in batch.items() if name not in ("x", "changed")}
            changed = batch.get("changed")
            if changed is None:
                changed = self._perturbed(model, x, batch["target"], batch.get("index"))
            with held_back(self, offers), drawing(draws[number]):
                output, price = self._outputs(model, x, changed, batch["target"])
                value = self.risk(output, **given, total=total, row_weights=weights[number], price=price)
            value = self._with_penalties(value * world_size(process_group), model, 1, len(batches))
            if number == len(batches) - 1:
                remember_over_ranks(self, offers, process_group)
            yield value

    def _of_outputs(
        self, model: nn.Module, batches: list[dict[str, Tensor]], process_group: ProcessGroup | None
    ) -> Iterator[Tensor]:
        """Micro-batches of a loss that couples its batch: the gradient in all outputs, then each part's own of it."""
        taken, draws = self._first_pass(model, batches, lambda output, price, _: _known(output, price))
        joined = [torch.cat(each).requires_grad_() for each in zip(*taken, strict=True)]
        whole = dict(zip(("output", "price"), joined, strict=False))
        columns: dict[str, Any] = {
            name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name not in ("x", "changed")
        }
        with torch.enable_grad():
            value = self.risk(**whole, **columns, process_group=process_group)
            learned = [tensor for tensor in (*self.loss.parameters(), *self.loss.buffers()) if tensor.requires_grad]
            gradients = torch.autograd.grad(value, [*joined, *learned], allow_unused=True)
        pairs = zip(learned, gradients[len(joined) :], strict=True)
        through = [(tensor * gradient).sum() for tensor, gradient in pairs if gradient is not None]
        lengths = [[len(rows) for rows in each] for each in zip(*taken, strict=True)]
        pieces = zip(*(g.split(each) for g, each in zip(gradients, lengths, strict=False)), strict=True)
        for batch, draw, slopes in zip(batches, draws, pieces, strict=True):
            with drawing(draw):
                found = _known(*self._outputs(model, batch["x"], batch["changed"], batch["target"]))
            own = [(part * slope).sum() for part, slope in zip(found, slopes, strict=True)]
            # What the loss itself learns goes with the first part.
            linear, through = torch.stack([*own, *through]).sum(), []
            share = value.detach() / len(batches) + (linear - linear.detach())
            yield self._with_penalties(share, model, 1, len(batches))

    def _first_pass(
        self,
        model: nn.Module,
        batches: list[dict[str, Tensor]],
        take: Callable[[Tensor, Tensor | None, dict[str, Tensor]], Taken],
    ) -> tuple[list[Taken], list["Draws | None"]]:
        """What is taken of each part's outputs, and how its draws are repeated; each part gets its perturbed input."""
        for batch in batches:
            batch["changed"] = self._perturbed(model, batch["x"], batch["target"], batch.get("index"))
        taken, draws = [], list[Draws | None]()
        with torch.no_grad(), held_back(self), held_back(model), on_copies(model, self.loss):
            for batch in batches:
                draws.append(Draws(batch["x"], model, self))
                taken.append(take(*self._outputs(model, batch["x"], batch["changed"], batch["target"]), batch))
        return taken, draws

    def _flat_columns(self, columns: Mapping[str, Tensor], losses: Tensor) -> dict[str, Tensor]:
        """What a weighting may ask for, one entry a loss; class probabilities and vectors keep their own dimension."""
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
            distance, target = self.perturb.per_sample, self._classes(target)
            return self.perturb(lambda changed: distance(model(changed), clean, target), x)

    def _outputs(
        self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor
    ) -> tuple[Tensor, Float[Tensor, " n"] | None]:
        """What the loss is taken of, and what comes on top of it."""
        if not isinstance(self.perturb, Consistency):
            return model(changed), None
        clean = model(x)
        distance = self.perturb.per_sample(model(changed), clean, self._classes(target))
        return clean, self.perturb.strength * distance

    def _classes(self, target: Tensor) -> Tensor:
        """The targets with a class in place of ``ignore_index``; rows that it marks count nowhere."""
        return self.loss.kind.filled(target, self.loss.ignore_index) if isinstance(self.loss, Loss) else target

    def _priced_losses(self, output: Tensor, price: Tensor | None, batch: dict[str, Tensor]) -> Tensor:
        assert isinstance(self.loss, Loss)
        losses, _ = self.loss.rows(output, batch["target"], batch.get("index"))
        return losses if price is None else losses + price.reshape(losses.shape)

    def _share(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        total: float | Tensor | None,
        process_group: ProcessGroup | None,
    ) -> tuple[float | Tensor, float | Tensor]:
        """How much of the penalties is this batch's, of how much; one on all ranks, as FSDP averages no shards."""
        if total is None or not self.penalties or isinstance(self.loss, BatchLoss):
            return 1, 1
        own = sum_over_ranks(self.loss.total_of(target, sample_weight), process_group)
        nothing = total == 0
        return own + nothing, total + nothing

    def _with_penalties(self, value: Tensor, model: nn.Module, part: float | Tensor, whole: float | Tensor) -> Tensor:
        if not self.penalties or getattr(self.loss, "reduction", "mean") == "none":
            return value
        penalty = torch.stack([replicated(penalty(model)) for penalty in self.penalties]).sum()
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
        """The losses as an attack sees them."""
        with self._unmoved(output):
            return self._losses(output, target, index)

    @contextlib.contextmanager
    def _unmoved(self, output: Tensor) -> Iterator[None]:
        """Whatever a loss would change by being asked is afterwards as it was: memories, buffers, random generators."""
        losses = [part for part in self.modules() if isinstance(part, (Loss, BatchLoss))]
        draws = any(getattr(part, "stochastic", False) for loss in losses for part in loss.modules())
        draws = draws and not torch.compiler.is_compiling()  # which can't be told a generator's state
        with held_back(self), on_copies(*losses), drawing(Draws(output, self) if draws else None):
            yield

    def _losses(self, output: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        if isinstance(self.loss, BatchLoss):
            return self.loss(output, target).expand(len(output))
        losses, _ = self.loss.rows(output, target, index)
        return losses.flatten(1).sum(dim=1) if losses.ndim > 1 else losses


def arguments_of(part: object) -> dict[str, Tensor]:
    """A micro-batch by the names of the arguments."""
    if isinstance(part, Mapping):
        named = dict(part)
    elif isinstance(part, Sequence) and not isinstance(part, str) and len(part) == 2:
        named = dict(zip(("x", "target"), part, strict=True))
    else:
        raise TypeError(f"parts must each be (x, target), or a mapping with both, got {shown(part)}")
    for name in named:
        check_choice("parts", name, ARGUMENTS)
    for name in ("x", "target"):
        if name not in named:
            raise ValueError(f"parts must each have {name}, got {', '.join(named)}")
    return named


def _known(output: Tensor, price: Tensor | None) -> tuple[Tensor, ...]:
    return (output,) if price is None else (output, price)


def _gathered(columns: Mapping[str, Tensor | None], process_group: ProcessGroup, counts: list[int]) -> dict[str, Any]:
    return {
        name: None if column is None else gather_rows(column, process_group, counts) for name, column in columns.items()
    }
