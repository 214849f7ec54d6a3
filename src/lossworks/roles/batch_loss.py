"""The role of a loss that couples its whole batch."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lossworks.distributed import ProcessGroup, gather_rows
from lossworks.roles.kinds import REAL, Kind, TakesKind
from lossworks.roles.part import Part
from lossworks.roles.reduction import absent_rows
from lossworks.roles.weighting import inseparable

__all__ = ["BatchLoss", "present_rows"]


class BatchLoss(TakesKind, Part):
    """A loss that couples the whole batch and has no value per row, so that it refuses a ``Weighting``.

    When the batch is split over ranks, it is exact by :meth:`over_ranks`, which :class:`lossworks.Objective` calls. A
    row whose sample weight is 0 is as if it were absent: :func:`present_rows` leaves it out.

    Attributes:
        kind: The :class:`Kind` of target that it takes, or the kind's name, as in :class:`Loss`.
    """

    kind: ClassVar[Kind] = REAL
    couples_batch = True
    role = "loss"

    def output_size(self, num_classes: int = 1) -> int:
        """How many outputs a model needs for this loss."""
        return self.kind.outputs(num_classes)

    def forward(self, *inputs: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of the batch, one number."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(...) -> scalar")

    def over_ranks(
        self, *inputs: Tensor, sample_weight: Tensor | None = None, process_group: ProcessGroup
    ) -> Float[Tensor, ""]:
        """The loss of all ranks' rows: each rank gathers them, with their gradients, and computes the whole loss.

        The mean of the gradients over ranks is the whole batch's gradient. If the loss draws random numbers, the ranks'
        generators must be in the same state.
        """
        gathered = [gather_rows(rows, process_group) for rows in inputs]
        weight = None if sample_weight is None else gather_rows(sample_weight, process_group)
        return self(*gathered, sample_weight=weight)


def present_rows(sample_weight: Tensor | None, *columns: Tensor | None) -> list[Any]:
    """The weights and the columns without the rows of weight 0, whatever these hold.

    Under ``vmap`` and ``torch.compile`` rows can't be left out by their values, so all of them are returned.
    """
    given = [sample_weight, *columns]
    if not isinstance(sample_weight, Tensor) or inseparable(sample_weight):
        return given
    if any(isinstance(column, Tensor) and column.shape[:1] != sample_weight.shape for column in columns):
        return given  # the loss's own checks say what does not fit
    absent = absent_rows(sample_weight, columns[0])
    if absent is None:
        return given
    rows = (~absent).nonzero().flatten()
    return [None if column is None else column[rows] for column in given]
