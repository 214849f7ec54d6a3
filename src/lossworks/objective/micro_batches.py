"""The objective on a batch that comes in parts (micro-batches), with only one part's graph alive at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lossworks.checks import check_choice, check_sample_weight, check_tensor, shown
from lossworks.distributed import ProcessGroup, sum_over_ranks, world_size
from lossworks.objective.formula import Formula, afresh
from lossworks.objective.states import Draws, drawing, on_copies
from lossworks.perturb.inference import ordinary
from lossworks.roles import Loss, Offers, asked_once, held_back, remember_over_ranks

__all__ = ["ARGUMENTS", "Objective", "arguments_of"]

ARGUMENTS = ("x", "target", "index", "group", "sample_weight")
Taken = TypeVar("Taken")


class Objective(Formula):
    r"""The objective that training minimises: :math:`\sum_i w_i\, \ell(f_\theta(x_i + \delta_i), y_i) + R(\theta)`.

    Value and gradient are those of the whole batch however the batch is split, wherever the method allows it.

    Under ``DistributedDataParallel`` or FSDP, which average gradients over ranks, give the process group; ranks may
    have different numbers of rows, or none::

        group = torch.distributed.group.WORLD
        objective(model, x, target, index=index, process_group=group).backward()
        optimizer.step()

    For micro-batches (gradient accumulation), on one process or with a group as well::

        for value in objective.micro_batches(model, parts, process_group=group):
            value.backward()
        optimizer.step()

    or, if the weights do not depend on the whole batch, with the batch's total::

        total = sum(objective.loss.total_of(target) for _, target in parts)
        for x, target in parts:
            objective(model, x, target, total=total).backward()

    Args:
        loss: :math:`\ell`. Its ``reduction`` says whether the weighted losses are averaged or summed.
        weights: :math:`w`, called with the losses and what it needs of ``index``, ``group``, ``target``. The losses are
            detached: weights are the adversary's or the user's choice, and by the envelope theorem their own gradient
            does not count.
        perturb: :math:`\delta`, called with the risk as a function of the input. It sees only the rows of its own rank
            and micro-batch. During its search the model is in evaluation mode, so that rows do not depend on each other
            (batch normalisation uses its running statistics, dropout is off) and buffers do not change. Neither do the
            loss's memories and buffers, nor (except under ``torch.compile``) the random generators that the loss draws
            from. What the perturbation itself draws advances torch's generator, and by more on a rank with more rows,
            so a loss that draws too needs a generator of its own. A :class:`~lossworks.roles.Consistency` adds a price
            to each row's clean loss.
        penalties: The terms of :math:`R`, which are added up. If one of them reads features, the model must give a pair
            ``(output, features)``, and the penalty gets the features of the rows at hand: those of the call whose
            output the loss reads, of a micro-batch its own.

    Shape:
        - model: a module from ``x`` to what ``loss`` takes. Returns ``()``, or the rows' shape with
          ``reduction="none"``, which leaves the penalties out, as they belong to no row.

    Raises:
        TypeError: a part in the wrong role; a ``Weighting`` together with a ``BatchLoss``.
        ValueError: an argument that a part needs is missing.

    >>> from lossworks.losses import CrossEntropyLoss
    >>> objective = Objective(CrossEntropyLoss())
    >>> objective(nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    role: ClassVar[str] = "objective"
    papers: ClassVar[tuple[str, ...]]  # set by the ready-made objectives
    helps: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    needs: ClassVar[tuple[str, ...]] = ()

    def micro_batches(
        self,
        model: nn.Module,
        parts: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
        process_group: ProcessGroup | None = None,
    ) -> Iterator[Tensor]:
        """Yield the objective on each part of a batch; call ``backward`` on each value before taking the next.

        The values add up to the whole batch's value (in the mean over ranks, with a ``process_group``), and so do the
        gradients. Only one part's graph is alive at a time. If the weights or the loss depend on the whole batch, all
        parts first run without gradients, and then run again with the same random draws and from the same buffers.
        Dropout is therefore exact, if its generator is torch's or an attribute of a module. Batch normalisation is
        another model on each part, whatever an objective does. Memories per training row are written once, as if the
        batch had come whole. ::

            for value in objective.micro_batches(model, parts):
                value.backward()
            optimizer.step()

        Under ``DistributedDataParallel`` all parts except the last belong under ``model.no_sync()``, both taking the
        value and its ``backward``: the wrapper decides in the forward pass whether gradients will be averaged. ::

            values = objective.micro_batches(model, parts, process_group=group)
            with model.no_sync():
                for _ in range(len(parts) - 1):
                    next(values).backward()
            for value in values:
                value.backward()

        Args:
            model: The module that is called on each part's ``x``.
            parts: Pairs ``(x, target)``, or mappings with ``x``, ``target`` and what is needed of ``index``, ``group``
                and ``sample_weight``. At least one on each rank; ranks may have different numbers of parts.
            process_group: The ranks that hold the other rows of the batch.

        Yields:
            One value per part.

        Raises:
            ValueError: no parts, an argument that is not known, ``reduction="none"``, sample weights that require grad,
                or targets that require grad where the loss couples its batch.
        """
        if isinstance(parts, (str, Mapping)) or not isinstance(parts, Iterable):
            raise TypeError(f"parts must be a sequence of micro-batches, got {shown(parts)}")
        batches = [arguments_of(part) for part in parts]
        if not batches:
            raise ValueError("parts must hold at least one micro-batch, which may have no rows")
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
                    f"{name} must not require grad in micro-batches, as its gradient belongs to the whole "
                    "batch: call the objective on the whole batch, or detach it"
                )
        batches = [{**batch, "target": self._marked(batch["target"], batch.get("sample_weight"))} for batch in batches]
        model = self._watched(model)
        if self.loss.couples_batch:
            yield from self._of_outputs(model, batches, process_group)
        else:
            yield from self._of_rows(model, batches, process_group)

    def _of_rows(
        self, model: nn.Module, batches: list[dict[str, Tensor]], process_group: ProcessGroup | None
    ) -> Iterator[Tensor]:
        """Micro-batches of a loss with rows: a part needs only the total and its rows' weights from the others."""
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
            if "sample_weight" in batches[0]:
                columns["sample_weight"] = torch.cat([batch["sample_weight"].flatten() for batch in batches])
            found = self.weigh(torch.cat([rows.flatten() for rows in outputs]), **columns, process_group=process_group)
            weights = list(found.split([rows.numel() for rows in outputs]))
        offers: Offers = []
        for number, batch in enumerate(batches):
            x = batch["x"]
            given: dict[str, Any] = {name: column for name, column in batch.items() if name not in ("x", "changed")}
            changed = batch.get("changed")
            if changed is None:
                changed = self._searched(model, x, batch["target"], batch.get("index"), batch.get("sample_weight"))
            with held_back(self, offers), drawing(draws[number]):
                output, price = self._outputs(afresh(model), x, changed, batch["target"])
                value = self.risk(output, **given, total=total, row_weights=weights[number], price=price)
            value = self._with_penalties(value * world_size(process_group), model, 1, len(batches))
            if number == len(batches) - 1:
                remember_over_ranks(self, offers, process_group)
            yield value

    def _of_outputs(
        self, model: nn.Module, batches: list[dict[str, Tensor]], process_group: ProcessGroup | None
    ) -> Iterator[Tensor]:
        """Micro-batches of a loss that couples its batch: the gradient in all outputs is divided among the parts."""
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
                found = _known(*self._outputs(afresh(model), batch["x"], batch["changed"], batch["target"]))
            own = [(part * slope).sum() for part, slope in zip(found, slopes, strict=True)]
            # The gradient of the loss's own parameters goes with the first part.
            linear, through = torch.stack([*own, *through]).sum(), []
            share = value.detach() / len(batches) + (linear - linear.detach())
            yield self._with_penalties(share, model, 1, len(batches))

    def _first_pass(
        self,
        model: nn.Module,
        batches: list[dict[str, Tensor]],
        take: Callable[[Tensor, Tensor | None, dict[str, Tensor]], Taken],
    ) -> tuple[list[Taken], list["Draws | None"]]:
        """What ``take`` reads of each part's outputs, and each part's random draws; adds the perturbed inputs."""
        for batch in batches:
            columns = (batch["target"], batch.get("index"), batch.get("sample_weight"))
            batch["changed"] = self._searched(model, batch["x"], *columns)
        taken, draws = [], list[Draws | None]()
        with torch.no_grad(), held_back(self), held_back(model), on_copies(model, self.loss):
            for batch in batches:
                draws.append(Draws(batch["x"], model, self))
                taken.append(take(*self._outputs(model, batch["x"], batch["changed"], batch["target"]), batch))
        return taken, draws

    def _priced_losses(self, output: Tensor, price: Tensor | None, batch: dict[str, Tensor]) -> Tensor:
        assert isinstance(self.loss, Loss)
        losses, rows = self.loss.weighted_rows(
            output, batch["target"], sample_weight=batch.get("sample_weight"), index=batch.get("index")
        )
        return losses if price is None else losses + self._of_present(price.reshape(losses.shape), rows)


def arguments_of(part: object) -> dict[str, Tensor]:
    """A micro-batch as a mapping from the names of the arguments."""
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
    return {name: ordinary(value) for name, value in named.items()}


def _known(output: Tensor, price: Tensor | None) -> tuple[Tensor, ...]:
    return (output,) if price is None else (output, price)
