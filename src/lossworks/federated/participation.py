"""Weights for clients that take part only now and then, learned from when they did."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lossworks.checks import check_floating, check_int, check_tensor
from lossworks.roles import cite

__all__ = ["ParticipationWeights", "fedau_aggregate"]


class ParticipationWeights(nn.Module):
    r"""FedAU: weights each client by the mean interval between the rounds that it took part in.

    .. math::
        \omega_c = \frac1{M_c} \sum_{m=1}^{M_c} S_{c,m}, \qquad
        \theta \leftarrow \theta + \frac{\eta}{N} \sum_{c \text{ present}} \omega_c \Delta_c

    An interval ends when the client takes part, or when it is ``cutoff`` rounds long. The mean estimates one over the
    client's probability to take part, so that over many rounds all clients count alike although nobody knows these
    probabilities. A round's weights use only the intervals that ended before it; a client without one has weight 1.

    Args:
        num_clients: The number of clients N, >= 1.
        cutoff: The longest interval K, in rounds, >= 1; 1 makes all weights 1. A large cutoff lowers the bias and
            raises the variance.

    Shape:
        - present: which clients take part, ``(N,)``, bool. Returns ``(N,)`` float64: in [1, K] if present, else 0.

    Raises:
        ValueError: ``num_clients < 1``, ``cutoff < 1``, ``present`` of another shape.
        TypeError: ``present`` is not bool.

    Use it where a client's presence is related to its rows, as with phones that are charged at night. Where all clients
    are drawn alike, it is plain averaging with noise. Each call counts as one round.

    Papers: wang2024fedau

    >>> weights = ParticipationWeights(2)
    >>> [weights(torch.tensor([True, t % 2 == 1])).tolist() for t in range(4)][-1]
    [1.0, 2.0]
    """

    papers = ("wang2024fedau",)
    helps = ("federated",)
    since: Tensor
    total: Tensor
    intervals: Tensor

    def __init__(self, num_clients: int, cutoff: int = 50) -> None:
        super().__init__()
        check_int("num_clients", num_clients, low=1, high=2**24)
        self.cutoff = check_int("cutoff", cutoff, low=1, high=2**53)
        for name in ("since", "total", "intervals"):
            self.register_buffer(name, torch.zeros(num_clients, dtype=torch.int64))

    def forward(self, present: Bool[Tensor, " clients"]) -> Float[Tensor, " clients"]:
        """This round's weights."""
        check_tensor("present", present)
        if present.dtype != torch.bool:
            raise TypeError(f"present must be bool, got {present.dtype}")
        if present.shape != self.since.shape:
            raise ValueError(f"present must have shape {tuple(self.since.shape)}, got {tuple(present.shape)}")
        mean = self.total.double() / self.intervals.clamp(min=1)
        weights = torch.where(self.intervals > 0, mean, 1.0) * present
        self.since += 1
        ended = present | (self.since >= self.cutoff)
        self.total += self.since * ended
        self.intervals += ended
        self.since *= ~ended
        return weights

    def extra_repr(self) -> str:
        """The hyperparameters."""
        return f"num_clients={len(self.since)}, cutoff={self.cutoff}"


@cite("wang2024fedau", helps=("federated",))
def fedau_aggregate(
    updates: Float[Tensor, "clients size"], weights: Float[Tensor, " clients"]
) -> Float[Tensor, " size"]:
    r"""FedAU aggregation: the weighted sum of the clients' updates, divided by the number of all clients.

    .. math::
        \frac1N \sum_c \omega_c \Delta_c

    Args:
        updates: Each client's change of the model; the row of an absent client is not read.
        weights: :math:`\omega` from :class:`ParticipationWeights`, >= 0, 0 where a client is absent.

    Shape:
        - updates ``(N, size)``, weights ``(N,)``; returns ``(size,)`` in the updates' dtype.

    Raises:
        ValueError: shapes that don't match, no clients, a weight below 0 or not finite.
        TypeError: not floating-point.

    Use it with :class:`ParticipationWeights` where the updates are at hand as one matrix. Dividing by the number of
    present clients instead would undo the weights.

    Papers: wang2024fedau

    >>> fedau_aggregate(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 2.0]))
    tensor([3.5000])
    """
    check_floating("updates", updates)
    check_floating("weights", weights)
    if updates.ndim != 2 or len(updates) == 0:
        raise ValueError(f"updates must have shape (N, size) with N >= 1, got {tuple(updates.shape)}")
    if weights.shape != updates.shape[:1]:
        raise ValueError(f"weights must have shape ({len(updates)},), got {tuple(weights.shape)}")
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        raise ValueError("weights must be finite and >= 0")
    rows = weights.to(updates.dtype)[:, None]
    return torch.where(rows > 0, rows * updates, 0).sum(dim=0) / len(updates)
