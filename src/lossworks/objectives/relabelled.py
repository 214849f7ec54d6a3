"""Objectives that replace some targets before the loss is computed."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lossworks.distributed import ProcessGroup
from lossworks.objective import Objective
from lossworks.objective.micro_batches import arguments_of


class RelabelledObjective(Objective):
    """An objective that replaces some targets by its own, once per step and before the weights are computed."""

    @abstractmethod
    def relabel(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The target to train on."""

    def forward(self, model: nn.Module, x: Tensor, target: Tensor, **columns: Any) -> Tensor:
        """The objective on this batch, or on this rank's share of it, see :meth:`Objective.forward`."""
        with torch.no_grad():
            target = self.relabel(model, x, target)
        return super().forward(model, x, target, **columns)

    def micro_batches(
        self,
        model: nn.Module,
        parts: Iterable[Sequence[Tensor] | Mapping[str, Tensor]],
        process_group: ProcessGroup | None = None,
    ) -> Iterator[Tensor]:
        """The objective on a batch that comes in parts, see :meth:`Objective.micro_batches`."""
        batches = [arguments_of(part) for part in parts]
        with torch.no_grad():
            batches = [{**batch, "target": self.relabel(model, batch["x"], batch["target"])} for batch in batches]
        return super().micro_batches(model, batches, process_group)
