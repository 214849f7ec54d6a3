"""Decomposition of a federated model's loss into its sources."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossworks.checks import check_sequence
from lossworks.federated.rounds import Client, check_clients, check_parts
from lossworks.roles import BatchLoss, Loss, cite

__all__ = ["LossDecomposition", "federated_loss_decomposition"]


class LossDecomposition(NamedTuple):
    """The terms of the loss, in the loss's units; ``local + shift + aggregation`` is ``total``.

    Args:
        local: The loss of the clients' own models on their own rows.
        shift: How much higher the loss of the clients' models is on all clients' rows.
        aggregation: How much higher the server's model's loss is than theirs on all rows; below 0 if averaging helps.
        total: The loss of the server's model on all clients' rows.
    """

    local: float
    shift: float
    aggregation: float
    total: float


@cite("zeng2024fedld", helps=("federated",))
@torch.no_grad()
def federated_loss_decomposition(
    model: nn.Module,
    local_models: Sequence[nn.Module],
    clients: Sequence[Client],
    loss: Loss | BatchLoss,
    *,
    weights: str | Tensor = "uniform",
) -> LossDecomposition:
    r"""Split a federated model's loss into what is left to learn, the shift between clients, and averaging's cost.

    .. math::
        F(\bar\theta) = \underbrace{\textstyle\sum_c p_c F_c(\theta_c)}_{local}
        + \underbrace{\textstyle\sum_c p_c \big(F(\theta_c) - F_c(\theta_c)\big)}_{shift}
        + \underbrace{F(\bar\theta) - \textstyle\sum_c p_c F(\theta_c)}_{aggregation},
        \qquad F = \sum_c p_c F_c

    The models are evaluated in evaluation mode and left unchanged.

    Args:
        model: The server's model, :math:`\bar\theta`.
        local_models: Each client's model, :math:`\theta_c`, after its local steps.
        clients: Each client's rows ``(x, y)``, not empty.
        loss: The loss that gives :math:`F_c`.
        weights: :math:`p`, as in :func:`federated_round`, but divided by their sum.

    Shape:
        - N models and N clients; returns a :class:`LossDecomposition` of floats.

    Raises:
        ValueError: no clients, a client without rows, another number of models than of clients.
        TypeError: something that is no model, no part, or no pair of tensors.

    Use it to learn whether a federated training needs more local steps, other clients or another aggregation. With N
    clients it evaluates a client's rows N² + N times.

    Papers: zeng2024fedld

    >>> from lossworks.losses import CrossEntropyLoss
    >>> clients = [(torch.ones(2, 3), torch.tensor([0, 1])), (torch.zeros(2, 3), torch.tensor([1, 1]))]
    >>> models = [nn.Linear(3, 2) for _ in range(3)]
    >>> parts = federated_loss_decomposition(models[0], models[1:], clients, CrossEntropyLoss())
    >>> abs(parts.local + parts.shift + parts.aggregation - parts.total) < 1e-6
    True
    """
    shares = check_clients(clients, weights)
    shares = (shares / shares.sum()).double()
    check_sequence("local_models", local_models)
    if len(local_models) != len(clients):
        raise ValueError(f"local_models must be one for each of {len(clients)} clients, got {len(local_models)}")
    check_parts(loss)
    for name, module in (("model", model), *((f"local_models[{c}]", own) for c, own in enumerate(local_models))):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch module, got {type(module).__name__}")
    for c, (x, _) in enumerate(clients):
        if len(x) == 0:
            raise ValueError(f"clients must have rows, client {c} has none")

    def losses(asked: nn.Module) -> Tensor:
        """The model's loss on each client's rows."""
        modes = [(module, module.training) for module in asked.modules()]
        asked.eval()
        try:
            values = [loss(asked(x), y).double().cpu() for x, y in clients]
        finally:
            for module, mode in modes:
                module.training = mode
        return torch.stack(values)

    table = torch.stack([losses(own) for own in local_models])
    own, everywhere, total = shares @ table.diagonal(), shares @ (table @ shares), losses(model) @ shares
    return LossDecomposition(float(own), float(everywhere - own), float(total - everywhere), float(total))
