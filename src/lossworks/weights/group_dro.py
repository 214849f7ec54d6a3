"""Group DRO: the worst mixture of known groups."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_amounts, check_int, check_positive, readable
from lossworks.roles import Weighting
from lossworks.weights.worst_case import check_losses

__all__ = ["GroupDRO"]


class GroupDRO(Weighting):
    r"""Group DRO: rows of the groups on which the model does worst count more, by the worst mixture of groups.

    .. math::
        \max_{q \in \Delta_G} \sum_g q_g \bar\ell_g, \qquad
        q_g \leftarrow q_g\, e^{\eta\, \bar\ell_g} / Z, \qquad w_i = q_{g_i} \frac{n}{n_{g_i}}

    Here :math:`\bar\ell_g` is the mean loss and :math:`n_g` the number of rows of each group in the batch. A group
    without rows in the batch keeps its weight; within that batch its weight goes to the other groups in proportion, so
    that the rows' mean weight is 1. The groups' weights q are remembered from batch to batch and change in ``train()``
    mode only. A batch that is split must be weighted as a whole, with a single step of q: :class:`lossworks.Objective`
    does this, with ``process_group=`` and in its ``micro_batches``.

    Args:
        num_groups: G, the number of groups, at least 1.
        step_size: :math:`\eta`, > 0, in 1 / loss units; with ``math.inf`` only the batch's worst group counts.
        adjustment: The constant C, >= 0: :math:`C / \sqrt{N_g}` is added to the mean loss of each group. Above 0 it
            needs ``group_counts``.
        group_counts: ``(G,)``, how many training rows each group has.

    Buffers:
        log_q: ``(G,)`` float64, the logarithm of q.

    Shape:
        - losses: ``(n,)``; group: ``(n,)`` int64 in ``[0, G)``; returns ``(n,)``.

    Raises:
        ValueError: group missing or out of range, ``step_size <= 0``, an adjustment without counts; a loss that is NaN
            or infinite (the error names its row).

    Use it when the groups are known and the worst of them is what counts. Combine it with a strong penalty or early
    stopping: for a network that fits every training row no group is the worst in training.

    Papers: sagawa2020groupdro

    >>> weights = GroupDRO(num_groups=2, step_size=math.inf)
    >>> weights(torch.tensor([1.0, 3.0, 2.0]), group=torch.tensor([0, 1, 1]))
    tensor([0.0000, 1.5000, 1.5000])
    """

    papers = ("sagawa2020groupdro",)
    helps = ("worst case", "groups")
    needs = ("num_groups",)
    settings = ({"step_size": 0.01}, {"step_size": 0.1}, {"step_size": 1.0})
    needs_group = True
    couples_batch = True

    log_q: Tensor

    def __init__(
        self,
        num_groups: int,
        step_size: float | Tensor = 0.01,
        adjustment: float | Tensor = 0.0,
        group_counts: Float[Tensor, " groups"] | None = None,
    ) -> None:
        super().__init__()
        self.num_groups = check_int("num_groups", num_groups, low=1, high=2**24)
        self.step_size = step_size if _endless(step_size) else check_positive("step_size", step_size)
        self.adjustment = check_positive("adjustment", adjustment, allow_zero=True)
        if group_counts is not None:
            check_amounts("group_counts", group_counts, "num_groups", least=1)
            if len(group_counts) != num_groups:
                raise ValueError(f"group_counts must have shape ({num_groups},), got {tuple(group_counts.shape)}")
        elif isinstance(adjustment, Tensor) or adjustment > 0:
            raise ValueError("adjustment above 0 needs group_counts, the number of rows of each group")
        self.group_counts = group_counts
        self.log_q = torch.full((num_groups,), -math.log(num_groups), dtype=torch.float64)

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of the rows' groups, after this batch's step of q."""
        group = self._required("group", group, losses)
        check_losses(losses)
        if not len(losses):
            return losses.detach().clone()
        if readable(group) and not 0 <= int(group.min()) <= int(group.max()) < self.num_groups:
            row = int(((group < 0) | (group >= self.num_groups)).nonzero()[0])
            raise ValueError(f"group must be in [0, {self.num_groups}), got {int(group[row])} in row {row}")
        inside = (group[:, None] == torch.arange(self.num_groups, device=group.device)).double()
        counts = inside.sum(dim=0)
        present = counts > 0
        means = (losses.detach().double() @ inside) / counts.clamp(min=1)
        if self.group_counts is not None:
            means = means + self.adjustment / self.group_counts.clamp(min=1).sqrt()
        log_q = self._moved(torch.where(present, means, -math.inf), present)
        if self.training:
            self.log_q = log_q.detach().to(self.log_q.dtype)
        share = torch.where(present, log_q, -math.inf).softmax(dim=0)
        return self._given(inside @ (share * len(losses) / counts.clamp(min=1)), losses)

    def _moved(self, means: Float[Tensor, " groups"], present: Tensor) -> Float[Tensor, " groups"]:
        """log q after a step; a group that is not there keeps its weight."""
        if _endless(self.step_size):
            worst = (means == means.max()).double()
            return (worst / worst.sum()).log()
        moved = self.log_q + self.step_size * torch.where(present, means, 0)
        here = torch.where(present, self.log_q, -math.inf).logsumexp(dim=0)
        scale = here - torch.where(present, moved, -math.inf).logsumexp(dim=0)
        return torch.where(present, moved + scale, self.log_q)


def _endless(step_size: float | Tensor) -> bool:
    """Whether it is the number infinity; a tensor's value is not looked at."""
    return isinstance(step_size, float) and step_size == math.inf
