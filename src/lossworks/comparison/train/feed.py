"""The feed of rows to the stacks: gathered from one table, in each replica's own order and scaling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lossworks.comparison.models.scaling import Scaler, TargetScale, scale_
from lossworks.comparison.train.risk import State

__all__ = ["Feed", "Order", "Table"]

GATHERED_BYTES = 2**21
"""How many bytes of rows are gathered and scaled at once in training, so that they are still in the cache when used."""


@dataclass(frozen=True)
class Table:
    """The data that all replicas share, on the device.

    Attributes:
        x: The rows ``(n, *shape)``, float32.
        y: The targets ``(n,)``, int64 classes or floating-point values.
        group: The group of each row ``(n,)``, int64, or None.
    """

    x: Tensor
    y: Tensor
    group: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(self.x.shape[1:])


class Order:
    """An endless sequence of row numbers: all rows in a random order, which is drawn again after each pass."""

    def __init__(self, rows: Tensor, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator
        self._order = torch.empty(0, dtype=torch.int32)

    def take(self, count: int) -> Tensor:
        """Return the next row numbers."""
        taken = []
        while count:
            if not len(self._order):
                self._order = torch.randperm(len(self.rows), generator=self.generator, dtype=torch.int32)
            now, self._order = self._order[:count], self._order[count:]
            taken.append(now)
            count -= len(now)
        return self.rows[torch.cat(taken)]


class Feed:
    """The batches of a stack's replicas.

    Args:
        table: The data.
        orders: The order of rows of each replica.
        scalers: The scaler of each replica, all with the same kind of scaling.
        targets: The target scale of each replica, or empty if targets are not scaled.
    """

    def __init__(
        self, table: Table, orders: Sequence[Order], scalers: Sequence[Scaler], targets: Sequence[TargetScale]
    ) -> None:
        self.table, self.orders, self.scaling = table, list(orders), scalers[0].scaling
        self.center, self.inverse = (
            torch.stack([getattr(scaler, name) for scaler in scalers])[:, None] for name in ("center", "inverse")
        )
        moments = [[[scale.mean], [scale.std]] for scale in targets]
        self.moments = torch.tensor(moments, dtype=torch.float64, device=table.x.device) if targets else None
        self._gathered = table.x.new_empty(0)

    def keep(self, replicas: Sequence[int]) -> None:
        """Keep only these replicas."""
        chosen = list(replicas)
        self.orders = [self.orders[number] for number in chosen]
        self.center, self.inverse = self.center[chosen], self.inverse[chosen]
        self.moments = None if self.moments is None else self.moments[chosen]

    def batches(self, steps: int, rows: int) -> Iterator[tuple[Tensor, State]]:
        """Yield a batch for each step: ``x`` ``(R, rows, *shape)``, and its ``target``, ``index``, maybe ``group``."""
        order = torch.stack([one.take(steps * rows) for one in self.orders]).view(len(self.orders), steps, rows)
        order = order.transpose(0, 1).contiguous().to(self.table.x.device)
        at_once = max(1, GATHERED_BYTES // (4 * len(self.orders) * rows * prod(self.table.shape)))
        for index in order.split(at_once):
            x = self._gather(index)
            batch = {"target": self._targets(index), "index": index}
            if self.table.group is not None:
                batch["group"] = self.table.group[index]
            for number in range(len(index)):
                yield x[number], {name: tensor[number] for name, tensor in batch.items()}

    def inputs(self, index: Tensor, replicas: slice) -> Tensor:
        """The scaled inputs ``(r, n, *shape)`` of the rows ``index`` ``(r, n)`` for some replicas."""
        x = self.table.x.index_select(0, index.flatten()).view(*index.shape, *self.table.shape)
        return scale_(x, self.center[replicas], self.inverse[replicas], self.scaling)

    def _gather(self, index: Tensor) -> Tensor:
        shape = (index.numel(), *self.table.shape)
        if self._gathered.numel() < prod(shape):
            self._gathered = self.table.x.new_empty(prod(shape))
        x = self._gathered[: prod(shape)].view(shape)
        torch.index_select(self.table.x, 0, index.flatten(), out=x)
        return scale_(x.view(*index.shape, *self.table.shape), self.center, self.inverse, self.scaling)

    def _targets(self, index: Tensor) -> Tensor:
        target = self.table.y[index]
        if self.moments is None:
            return target
        return ((target - self.moments[:, 0]) / self.moments[:, 1]).float()
