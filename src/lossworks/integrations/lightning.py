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
    r"""Callback that makes ``accumulate_grad_batches`` exact for :func:`step_loss`: each row of a step counts the same.

    .. math::
        \nabla = \frac{\sum_b \sum_{i \in b} w_i \nabla \ell_i}{\sum_b \sum_{i \in b} 1}
        \quad\text{instead of}\quad
        \frac{1}{A} \sum_b \frac{\sum_{i \in b} w_i \nabla \ell_i}{\sum_{i \in b} 1}

    over the batches b of a step on all processes. How many rows a step has is known only after its last batch. Until
    then the sums are scaled by a guess (the first batch's rows, times A); they are corrected before gradients are
    clipped. With batches of equal size the guess is right and nothing is scaled. The last step of an epoch, which
    Lightning takes with fewer batches but still divides by A, is exact too. A loss's memory per training row is written
    once per step. With ``reduction="sum"`` the gradient is the numerator.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(accumulate_grad_batches=4, callbacks=[ExactAccumulation()], logger=False)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._step: _Step | None = None  # None between steps
        self._batch = -1  # the number of the last batch that was added

    def batch_of(self, module: LightningModule, objective: Objective) -> "_Step":
        """The present step, to which the trainer's present batch is added."""
        batch = module.trainer.fit_loop.epoch_loop.total_batch_idx
        if batch == self._batch or (self._step is not None and self._step.objective is not objective):
            raise ValueError(
                "step_loss must be called once per batch, with one objective, under accumulate_grad_batches: gradients "
                "that are already summed can't be corrected for each batch's own rows"
            )
        self._batch = batch
        self._step = self._step or _Step(objective, module.device, _processes(module.trainer))
        return self._step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the step that an interrupted training has left."""
        self._step, self._batch = None, -1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the step, as it will not be taken."""
        self._step = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Correct the gradients, now that all rows of the step are known."""
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
    """A step whose batches come one by one; the gradient so far is ``times`` that of the objective of their rows."""

    def __init__(self, objective: Objective, device: torch.device, process_group: ProcessGroup | None) -> None:
        self.objective = objective
        self.process_group = process_group
        self.offers: Offers = []  # what the loss will remember; each process holds the offers of all rows
        self.batches = 0
        self.rows = self.unit = self.times = torch.zeros((), dtype=precise(device), device=device)

    def value(self, model: nn.Module, x: Any, target: Tensor, **columns: Tensor | None) -> Tensor:
        """Add a batch; return its part of the objective, in the unit of the first batch that has rows to count."""
        assert isinstance(self.objective.loss, Loss)
        own = self.objective.loss.total_of(target, columns["sample_weight"]).detach().to(self.rows)
        rows = sum_over_ranks(own, self.process_group)
        self.batches += 1
        self.rows = self.rows + rows
        self.unit = torch.where(self.unit > 0, self.unit, rows)
        unit, before = torch.where(self.unit > 0, self.unit, 1), self.times
        if self.objective.loss.reduction == "sum":
            self.times = torch.ones_like(rows)
        else:  # without any row only the penalties count, once per batch, until a batch with rows takes them back
            self.times = torch.where(self.rows > 0, self.rows / unit, self.batches)
        model = self.objective._watched(model)
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
    """The objective of a batch, as ``training_step`` returns it; exact over processes and accumulated batches.

    With several processes (``strategy="ddp"``) the batch is all processes' batches together, also if these are uneven,
    and the mean of the returned values is the whole batch's value. With ``accumulate_grad_batches`` above 1 it needs
    :class:`ExactAccumulation` among the Trainer's callbacks.

    A loss that couples its batch, or a weighting that does (any without ``over_data_set``) or has a memory, sees one
    batch of each process at a time, and so refuses accumulation. Give ``training_step`` the whole batch instead and
    split it there, with ``Objective.micro_batches`` under manual optimization.

    Penalties are part of each batch's value, in proportion to its rows. As long as no batch of a step has rows, each
    value is the penalties alone; the first batch with rows subtracts these again, so that penalties count once per
    step. With ``reduction="sum"`` they are in the step's first value.

    Args:
        module: The module whose ``training_step`` calls this function.
        objective: The :class:`~lossworks.Objective`.
        x: The inputs on which ``model`` is called.
        target: The targets.
        model: The network, if it is not ``module`` itself.
        index: The rows' numbers in the data set, for parts that need them.
        group: The rows' groups, for parts that need them.
        sample_weight: One weight per row, >= 0; the mean divides by their sum over the whole step.

    Returns:
        The value whose gradient the step needs, ``()``.

    Raises:
        TypeError: ``objective`` is no :class:`~lossworks.Objective`.
        RuntimeError: accumulation without the callback, or accumulation by the strategy itself.
        ValueError: ``reduction="none"`` in training; accumulation with a part that couples its batch, or with more than
            one call per batch.

    Use it in ``training_step`` in place of ``F.cross_entropy(self(x), y)``::

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
