"""The loss that couples its batch."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lossworks.distributed import ProcessGroup, gather_rows
from lossworks.roles.kinds import REAL, Kind, declare_kind
from lossworks.roles.part import Part

__all__ = ["BatchLoss"]


class BatchLoss(Part):
    """A loss that couples the whole batch and has no per-sample form; a ``Weighting`` refuses it.

    Split over ranks it is exact by :meth:`over_ranks`, which :class:`lossworks.Objective` calls.

    Attributes:
        kind: Its :class:`Kind` of target, or the name of one, as a :class:`Loss` has it.
    """

    kind: ClassVar[Kind] = REAL
    couples_batch = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declare_kind(cls)

    def output_size(self, num_classes: int = 1) -> int:
        """How many outputs a model needs for this loss."""
        return self.kind.outputs(num_classes)

    def forward(self, *inputs: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """One number for the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(...) -> scalar")

    def over_ranks(
        self, *inputs: Tensor, sample_weight: Tensor | None = None, process_group: ProcessGroup
    ) -> Float[Tensor, ""]:
        """The loss of all ranks' rows, computed by each of them from what was gathered with its gradients.

        The mean over ranks of the gradients is the whole batch's. A loss that draws needs the ranks' generators in one
        state.
        """
        gathered = [gather_rows(rows, process_group) for rows in inputs]
        weight = None if sample_weight is None else gather_rows(sample_weight, process_group)
        return self(*gathered, sample_weight=weight)
