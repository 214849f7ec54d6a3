"""Objectives inside a ``LightningModule``."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lossworks.distributed import ProcessGroup, sum_over_ranks
from lossworks.objective import Objective
from lossworks.roles import Loss

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
    with fewer batches and still divides by A, is right too.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(accumulate_grad_batches=4, callbacks=[ExactAccumulation()], logger=False)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._guess: Tensor | None = None  # of what the step's rows sum to; None between steps
        self._own = torch.zeros(())  # what this process's rows sum to so far

    def total(self, own: Tensor, process_group: ProcessGroup | None) -> Tensor:
        """Take in what a batch's rows sum to; what to divide by until the whole step's sum is known."""
        if self._guess is None:
            self._guess = _positive(sum_over_ranks(own, process_group))
            self._own = torch.zeros_like(own)
        self._own = self._own + own
        return self._guess

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Put the gradients right, now that all rows of the step are known."""
        if self._guess is None:
            return
        whole = sum_over_ranks(self._own, dist.group.WORLD if trainer.world_size > 1 else None)
        precise = torch.float32 if whole.device.type == "mps" else torch.float64
        factor = self._guess.to(precise) * trainer.accumulate_grad_batches / _positive(whole)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self._guess = None


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

    A weighting or loss that couples its batch sees one batch of each process at a time, and so refuses accumulation:
    give ``training_step`` the whole batch and split it there, with ``Objective.micro_batches`` under manual
    optimization.

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
        RuntimeError: accumulation without the callback, or by the strategy itself.
        ValueError: accumulation with a part that couples its batch.

    In place of ``F.cross_entropy(self(x), y)`` in ``training_step``::

        x, y = batch
        return step_loss(self, self.objective, x, y)
    """
    trainer = module.trainer
    model = module if model is None else model
    columns = {"index": index, "group": group, "sample_weight": sample_weight}
    world = dist.group.WORLD if trainer.world_size > 1 else None
    if trainer.accumulate_grad_batches == 1 or not trainer.training:
        return objective(model, x, target, **columns, process_group=world)
    for part in (objective.loss, objective.weights):
        if part is not None and part.couples_batch:
            raise ValueError(
                f"{type(part).__name__} couples the rows of a step, and accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches} shows them in parts: give training_step the whole batch and split "
                "it with Objective.micro_batches under manual optimization"
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
    assert isinstance(objective.loss, Loss)
    total = exact.total(objective.loss.total_of(target, sample_weight), world)
    return objective(model, x, target, **columns, total=total, process_group=world)


def _positive(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, torch.ones_like(total))
