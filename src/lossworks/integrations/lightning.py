"""Objectives inside a ``LightningModule``."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lossworks.checks import precise
from lossworks.distributed import ProcessGroup, sum_over_ranks
from lossworks.integrations._checks import check_objective, coupling
from lossworks.objective import Objective
from lossworks.roles import Loss, Offers, held_back, remember_over_ranks

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("lossworks.integrations.lightning needs lightning: pip install lossworks[lightning]") from error

__all__ = ["ExactAccumulation", "step_loss"]


class ExactAccumulation(Callback):
    r"""Makes ``accumulate_grad_batches`` exact for :func:`step_loss`: each row counts the same, in whatever batch.

    .. math::
        \nabla = \frac{\sum_b \sum_{i \in b} w_i \nabla \ell_i}{\sum_b \sum_{i \in b} 1}
        \quad\text{instead of}\quad
        \frac{1}{A} \sum_b \frac{\sum_{i \in b} w_i \nabla \ell_i}{\sum_{i \in b} 1}

    over the batches b of a step on all processes. How many rows a step has is known when its last batch was seen: the
    sums are scaled by a guess until then (the first batch's rows, times A) and put right before gradients are clipped.
    With batches of one size the guess is right and nothing is scaled; the last step of an epoch, which Lightning takes
    with fewer batches and still divides by A, is right too. What a loss remembers per training row is written once a
    step. With ``reduction="sum"`` the gradient is the numerator.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(accumulate_grad_batches=4, callbacks=[ExactAccumulation()], logger=False)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._step: _Step | None = None  # None between steps
        self._batch = -1  # the last one that was taken in

    def batch_of(self, module: LightningModule, objective: Objective) -> "_Step":
        """The step that the batch belongs to, which is now under way."""
        batch = module.trainer.fit_loop.epoch_loop.total_batch_idx
        if batch == self._batch or (self._step is not None and self._step.objective is not objective):
            raise ValueError(
                "step_loss must be called once a batch, with one objective, under accumulate_grad_batches: gradients "
                "that are already summed can't be put right each by its own rows"
            )
        self._batch = batch
        self._step = self._step or _Step(objective, module.device, _processes(module.trainer))
        return self._step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what a training that was cut short has left."""
        self._step, self._batch = None, -1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the step that will not be taken."""
        self._step = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Put the gradients right, now that all rows of the step are known."""
        if self._step is None:
            return
        factor = trainer.accumulate_grad_batches / self._step.times
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        remember_over_ranks(self._step.objective, self._step.offers, None)
        self._step = None


class _Step:
    """A step whose batches come one after another: the gradient so far is ``times`` the objective's of their rows."""

    def __init__(self, objective: Objective, device: torch.device, process_group: ProcessGroup | None) -> None:
        self.objective = objective
        self.process_group = process_group
        self.offers: Offers = []  # what the loss will remember; each process has all rows of it
        self.batches = 0
        self.rows = self.unit = self.times = torch.zeros((), dtype=precise(device), device=device)

    def value(self, model: nn.Module, x: Any, target: Tensor, **columns: Tensor | None) -> Tensor:
        """Take in a batch; its part of the objective, in the unit of the first batch that has rows to count."""
        assert isinstance(self.objective.loss, Loss)
        own = self.objective.loss.total_of(target, columns["sample_weight"]).detach().to(self.rows)
        rows = sum_over_ranks(own, self.process_group)
        self.batches += 1
        self.rows = self.rows + rows
        self.unit = torch.where(self.unit > 0, self.unit, rows)
        unit, before = torch.where(self.unit > 0, self.unit, 1), self.times
        if self.objective.loss.reduction == "sum":
            self.times = torch.ones_like(rows)
        else:  # without any row there are only the penalties, once a batch, until a batch with rows takes them back
            self.times = torch.where(self.rows > 0, self.rows / unit, self.batches)
        with held_back(self.objective, self.offers), _without_penalties(self.objective):
            value = self.objective(model, x, target, **columns, total=unit, process_group=self.process_group)
        return self.objective._with_penalties(value, model, self.times - before, 1)


@contextlib.contextmanager
def _without_penalties(objective: Objective) -> Iterator[None]:
    penalties, objective.penalties = objective.penalties, nn.ModuleList()
    try:
        yield
    finally:
        objective.penalties = penalties


def step_loss(
    module: LightningModule,
    objective: Objective,
    x: Any,
    target: Tensor,
    *,
    model: nn.Module | None = None,
    index: Tensor | None = None,
    group: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The objective of a batch, to be returned by ``training_step``; exact over processes and accumulated batches.

    Over processes (``strategy="ddp"``) the batch is all processes' batches together, uneven ones too, and the returned
    values have the whole batch's value as their mean. With ``accumulate_grad_batches`` above 1 it needs
    :class:`ExactAccumulation` among the Trainer's callbacks.

    A loss that couples its batch, or a weighting that does (any without ``over_data_set``) or has a memory, sees one
    batch of each process at a time, and so refuses accumulation: give ``training_step`` the whole batch and split it
    there, with ``Objective.micro_batches`` under manual optimization.

    Penalties are part of each batch's value, by its rows. In batches that have none before one that has, each value is
    the penalties alone, which the first with rows takes off again, so that they count once a step; with
    ``reduction="sum"`` they are in the step's first value.

    Args:
        module: The module whose ``training_step`` this is.
        objective: The :class:`~lossworks.Objective`.
        x: The inputs, what ``model`` is called on.
        target: The targets.
        model: The network, if it is not ``module`` itself.
        index: The rows' numbers in the data set, for parts that need them.
        group: The rows' groups, for parts that need them.
        sample_weight: One weight a row, >= 0; the mean divides by their sum over the whole step.

    Raises:
        TypeError: not an objective.
        RuntimeError: accumulation without the callback, or by the strategy itself.
        ValueError: ``reduction="none"`` in training; accumulation with a part that couples its batch, or more than one
            call a batch under it.

    In place of ``F.cross_entropy(self(x), y)`` in ``training_step``::

        x, y = batch
        return step_loss(self, self.objective, x, y)
    """
    check_objective(objective)
    trainer = module.trainer
    model = module if model is None else model
    columns = {"index": index, "group": group, "sample_weight": sample_weight}
    if trainer.training and getattr(objective.loss, "reduction", "mean") == "none":
        raise ValueError("the loss must have reduction='mean' or 'sum' to be trained on, got 'none'")
    if trainer.accumulate_grad_batches == 1 or not trainer.training:
        return objective(model, x, target, **columns, process_group=_processes(trainer))
    part = coupling(objective)
    if part is not None:
        raise ValueError(
            f"{part} couples the rows of a step, and accumulate_grad_batches={trainer.accumulate_grad_batches} shows "
            "them in parts: give training_step the whole batch and split it with Objective.micro_batches under manual "
            "optimization"
        )
    if trainer.strategy.handles_gradient_accumulation:
        raise RuntimeError(f"{type(trainer.strategy).__name__} accumulates gradients by itself, and not exactly")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # one of its helpers sets it
    exact = next((callback for callback in callbacks if isinstance(callback, ExactAccumulation)), None)
    if exact is None:
        raise RuntimeError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches} is exact only with "
            "Trainer(callbacks=[lossworks.integrations.lightning.ExactAccumulation()])"
        )
    return exact.batch_of(module, objective).value(model, x, target, **columns)


def _processes(trainer: Trainer) -> ProcessGroup | None:
    return dist.group.WORLD if trainer.world_size > 1 else None
