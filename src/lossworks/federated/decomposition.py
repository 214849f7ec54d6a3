"""Where the loss of a federated model comes from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossworks.checks import check_sequence
from lossworks.federated.rounds import Client, check_clients, check_parts
from lossworks.roles import BatchLoss, Loss, cite

__all__ = ["LossDecomposition", "federated_loss_decomposition"]


class LossDecomposition(NamedTuple):
    """The terms, in the loss's units; ``local + shift + aggregation`` is ``total``.

    Args:
        local: What the clients' own models lose on their own rows.
        shift: What they lose more on all clients' rows.
        aggregation: What the server's model loses more than they do on all rows; below 0 where averaging helps.
        total: What the server's model loses on all clients' rows.
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
    r"""Split the global loss into what is left to learn, what the clients' data differ in, and what averaging costs.

    .. math::
        F(\bar\theta) = \underbrace{\textstyle\sum_c p_c F_c(\theta_c)}_{local}
        + \underbrace{\textstyle\sum_c p_c \big(F(\theta_c) - F_c(\theta_c)\big)}_{shift}
        + \underbrace{F(\bar\theta) - \textstyle\sum_c p_c F(\theta_c)}_{aggregation},
        \qquad F = \sum_c p_c F_c

    The models are asked in evaluation mode and left as they are.

    Args:
        model: The server's, :math:`\bar\theta`.
        local_models: Each client's, :math:`\theta_c`, after its local steps.
        clients: Each one's ``(x, y)``, not empty.
        loss: Gives :math:`F_c`.
        weights: :math:`p`, as in :func:`federated_round`, here divided by their sum.

    Shape:
        - N models and N clients; returns a :class:`LossDecomposition` of floats.

    Raises:
        ValueError: no clients, a client without rows, another number of models than of clients.
        TypeError: something that is no model, no part, or no pair of tensors.

    Use it to learn whether more local steps, other clients or another aggregation is what a federated training needs.
    It costs N² + N evaluations of a client's rows.

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
        """What the model loses on each client's rows."""
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
