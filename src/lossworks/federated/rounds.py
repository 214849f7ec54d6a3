"""Federated adversarial training, over clients that keep their rows."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lossworks.checks import (
    check_amounts,
    check_between,
    check_choice,
    check_function,
    check_generator,
    check_int,
    check_positive,
    check_sequence,
    check_tensor,
)
from lossworks.federated.participation import ParticipationWeights
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss, Perturbation, cite

__all__ = ["Client", "FederatedAdversarialTrainer", "RoundInfo", "check_clients", "check_parts", "federated_round"]

Client = tuple[Tensor, Tensor]
"""A client's rows: its inputs ``(n, ...)`` and their targets ``(n, ...)``."""
Aggregate = Callable[[Float[Tensor, "clients size"]], Float[Tensor, " size"]]


@dataclass(frozen=True)
class RoundInfo:
    """The losses and drift of a round's clients.

    Args:
        losses: Each client's loss before each of its steps, ``(N, K)``; NaN where it took no part. In float64 if a
            parameter of the model is, otherwise in float32, as the drift is.
        drift: The Euclidean distance of each client's parameters from the server's, ``(N,)``; 0 where it took no part.
    """

    losses: Float[Tensor, "clients steps"]
    drift: Float[Tensor, " clients"]


@cite("li2022federated", helps=("attacks", "federated"))
def federated_round(
    model: nn.Module,
    clients: Sequence[Client],
    loss: Loss | BatchLoss,
    attack: Perturbation | None = None,
    *,
    local_steps: int = 5,
    lr_local: float = 0.1,
    lr_global: float = 1.0,
    weights: str | Float[Tensor, " clients"] = "uniform",
    aggregate: Aggregate | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], RoundInfo]:
    r"""One round of federated (adversarial) training: clients train copies of the model, the server adds the changes.

    .. math::
        \theta_{c,k+1} = \theta_{c,k} - \eta_{local} \nabla_\theta \tfrac1n \sum_j \ell\big(f_\theta(\tilde x_j),
        y_j\big)\Big|_{\theta_{c,k}}, \qquad
        \theta \leftarrow \theta + \eta_{global} \sum_c p_c\, (\theta_{c,K} - \theta)

    At each step the attack acts on the client's own model. Without an attack this is federated averaging. The given
    model is not changed.

    Floating-point buffers (batch statistics) are averaged over the clients by their share of the weights; of integer
    buffers the largest is taken. :math:`\eta_{global}` does not affect buffers.

    Args:
        model: :math:`f_\theta`, the server's model.
        clients: Each client's rows ``(x, y)``; a client with weight 0 takes no part and may be empty.
        loss: :math:`\ell`, the same for all clients; a memory of the loss lasts only for the round.
        attack: The perturbation of a client's inputs; none by default.
        local_steps: K, the number of plain gradient steps of each client, >= 1.
        lr_local: :math:`\eta_{local}`, > 0.
        lr_global: :math:`\eta_{global}`, >= 0.
        weights: :math:`p`: ``"uniform"`` is 1/N each, ``"size"`` is each client's share of the rows, and a tensor gives
            one number >= 0 per client, used as it is (see :class:`ParticipationWeights`).
        aggregate: A function from the clients' changes ``(m, size)`` of one parameter to one change, which replaces the
            weighted sum, as :func:`principal_gradient_aggregate` does; the weights then only say who takes part.
        batch_size: The number of rows that a client draws for a step; all of its rows by default.
        generator: Where these rows are drawn from; torch's own generator by default.

    Shape:
        - x: ``(n, ...)``, y: what ``loss`` takes. Returns the new ``state_dict`` and a :class:`RoundInfo`.

    Raises:
        ValueError: no clients, a client that takes part without rows, numbers out of range, weights of another shape,
            an update that isn't finite.
        TypeError: clients that aren't pairs of tensors, a part in the wrong role.

    Use it to simulate clients on one machine, or as the arithmetic of a server that calls its clients itself. With many
    local steps on rows of few classes the clients drift apart, so keep ``local_steps`` small there.

    Papers: li2022federated

    >>> from lossworks.losses import CrossEntropyLoss
    >>> clients = [(torch.ones(4, 3), torch.tensor([0, 1, 1, 0])), (torch.zeros(2, 3), torch.tensor([1, 1]))]
    >>> state, info = federated_round(nn.Linear(3, 2), clients, CrossEntropyLoss())
    >>> info.losses.shape
    torch.Size([2, 5])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    check_parts(loss, attack)
    check_generator("generator", generator)
    check_int("local_steps", local_steps, low=1)
    check_between("lr_local", lr_local, 0, torch.finfo(torch.float32).max, open_low=True)
    check_positive("lr_global", lr_global, allow_zero=True)
    if aggregate is not None:
        check_function("aggregate", aggregate, "the clients' changes")
    if batch_size is not None:
        check_int("batch_size", batch_size, low=1)
    shares = check_clients(clients, weights)
    present = [c for c, share in enumerate(shares.tolist()) if share > 0]
    for c in present:
        if len(clients[c][0]) == 0:
            raise ValueError(f"clients must have rows where they take part, client {c} has none")

    # Tied weights are listed under each of their names.
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    precise = any(weight.dtype == torch.float64 for weight in model.parameters())
    precision = torch.float64 if precise else torch.float32
    losses = torch.full((len(clients), local_steps), torch.nan, dtype=precision)
    drift = torch.zeros(len(clients), dtype=precision)
    local = copy.deepcopy(model).train()
    after: list[dict[str, Tensor]] = []
    for c in present:
        local.load_state_dict(before)
        own = Objective(copy.deepcopy(loss), perturb=attack)
        losses[c] = _train(local, own, *clients[c], local_steps, lr_local, batch_size, generator)
        after.append({name: value.detach().clone() for name, value in local.state_dict().items()})
        moved = torch.stack([(after[-1][name] - before[name]).double().square().sum() for name in learned])
        drift[c] = moved.sum().sqrt()
        if not bool(drift[c].isfinite()):
            raise ValueError(f"lr_local must keep the updates finite, client {c}'s is not with {lr_local:g}")
    state = dict(before)
    for name, value in before.items() if present else ():
        values = torch.stack([own[name] for own in after])
        state[name] = (
            value + lr_global * _change(values - value, shares[present], aggregate)
            if name in learned
            else _buffer(values, shares[present])
        )
    return state, RoundInfo(losses, drift)


def check_parts(loss: Loss | BatchLoss, attack: Perturbation | None = None) -> None:
    """Raise unless loss and attack are parts in their roles."""
    if not isinstance(loss, (Loss, BatchLoss)):
        raise TypeError(f"loss must be a lossworks loss part, got {type(loss).__name__}")
    if attack is not None and not isinstance(attack, Perturbation):
        raise TypeError(f"attack must be a Perturbation, got {type(attack).__name__}")


def check_clients(clients: Sequence[Client], weights: str | Tensor) -> Tensor:
    """The clients' weights; raise unless each client is a pair of tensors with as many targets as inputs."""
    check_sequence("clients", clients)
    if not clients:
        raise ValueError("clients must hold at least one (x, y), got none")
    for c, client in enumerate(clients):
        if not isinstance(client, (tuple, list)) or len(client) != 2:
            raise TypeError(f"clients must be pairs (x, y), client {c} is {type(client).__name__}")
        for name, tensor in zip("xy", client, strict=True):
            check_tensor(f"clients[{c}]'s {name}", tensor)
            if tensor.ndim == 0 or len(tensor) != len(client[0]):
                raise ValueError(
                    f"clients must hold as many targets as inputs, client {c} has {tuple(client[0].shape)} and "
                    f"{tuple(client[1].shape)}"
                )
    if isinstance(weights, Tensor):
        check_amounts("weights", weights, "N", least=1)
        if len(weights) != len(clients):
            raise ValueError(f"weights must have one number for each of {len(clients)} clients, got {len(weights)}")
        return weights.detach()
    if check_choice("weights", weights, ("uniform", "size")) == "uniform":
        return torch.full((len(clients),), 1 / len(clients), dtype=torch.float64)
    rows = torch.tensor([len(x) for x, _ in clients], dtype=torch.float64)
    if not bool(rows.sum() > 0):
        raise ValueError("clients must have rows where their size weighs, got none")
    return rows / rows.sum()


def _train(
    model: nn.Module,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    steps: int,
    lr: float,
    batch_size: int | None,
    generator: torch.Generator | None,
) -> Float[Tensor, " steps"]:
    """Train the model in place; return the loss before each step."""
    descent = torch.optim.SGD(model.parameters(), lr=lr)
    index = torch.arange(len(x), device=x.device)
    losses = []
    for _ in range(steps):
        rows = index
        if batch_size is not None and batch_size < len(x):
            rows = torch.randperm(len(x), generator=generator)[:batch_size].to(x.device)
        descent.zero_grad()
        value = objective(model, x[rows], y[rows], index=rows)
        value.backward()
        descent.step()
        losses.append(value.detach().cpu())
    return torch.stack(losses)


def _change(changes: Shaped[Tensor, "m *size"], shares: Float[Tensor, " m"], aggregate: Aggregate | None) -> Tensor:
    if aggregate is None:
        return torch.tensordot(shares.to(changes), changes, dims=1)
    change = aggregate(changes.flatten(1))
    if not isinstance(change, Tensor) or change.shape != (changes[0].numel(),):
        what = tuple(change.shape) if isinstance(change, Tensor) else type(change).__name__
        raise ValueError(f"aggregate must return shape ({changes[0].numel()},), got {what}")
    return change.reshape(changes.shape[1:]).to(changes.dtype)


def _buffer(values: Shaped[Tensor, "m *size"], shares: Float[Tensor, " m"]) -> Tensor:
    if values.is_floating_point():
        return torch.tensordot((shares / shares.sum()).to(values), values, dims=1)
    return values.amax(dim=0)


_USUAL: dict[str, Any] = federated_round.__kwdefaults__ or {}
"""The options of a round and their defaults."""


class FederatedAdversarialTrainer:
    r"""Federated adversarial training: a server's model and its rounds (:func:`federated_round`), with saved state.

    .. math::
        \min_\theta \frac1N \sum_c \frac1{n_c} \sum_j \max_{\|\delta_{cj}\| \le \varepsilon}
        \ell\big(f_\theta(x_{cj} + \delta_{cj}), y_{cj}\big)

    Args:
        model: The server's model, trained in place.
        loss: :math:`\ell`.
        attack: The perturbation that looks for :math:`\delta`; without one it is federated averaging.
        participation: Weights for clients that are not always present, from the rounds in which they were seen; without
            it the clients of a round are weighted by the option ``weights``.
        options: Further keyword arguments of :func:`federated_round`.

    Shape:
        - :meth:`round` takes the clients' ``(x, y)`` and returns a :class:`RoundInfo`.

    Raises:
        TypeError: a part in the wrong role, an option that :func:`federated_round` does not take.

    Use it where a run of rounds is stopped and resumed. ``state_dict`` holds the model, the round's number, the counts
    of ``participation`` and the state of ``generator``. If the attack draws its starting points from a generator of its
    own, the caller must save that generator.

    Papers: li2022federated

    >>> from lossworks.losses import CrossEntropyLoss
    >>> from lossworks.perturb import PGD
    >>> trainer = FederatedAdversarialTrainer(nn.Linear(3, 2), CrossEntropyLoss(), PGD(0.1, steps=2), local_steps=1)
    >>> info = trainer.round([(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))])
    >>> trainer.rounds
    1
    """

    papers = ("li2022federated",)
    helps = ("attacks", "federated")

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | BatchLoss,
        attack: Perturbation | None = None,
        *,
        participation: ParticipationWeights | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch module, got {type(model).__name__}")
        check_parts(loss, attack)
        if participation is not None and not isinstance(participation, ParticipationWeights):
            raise TypeError(f"participation must be ParticipationWeights, got {type(participation).__name__}")
        for name in options:
            if name not in _USUAL:
                raise TypeError(f"options must be of {', '.join(_USUAL)}, got {name}")
        if participation is not None and "weights" in options:
            raise TypeError("weights must not be given beside participation, which makes them")
        self.model, self.loss, self.attack = model, loss, attack
        self.participation, self.options, self.rounds = participation, options, 0

    def round(self, clients: Sequence[Client], present: Iterable[bool] | Tensor | None = None) -> RoundInfo:
        """Run one round; ``present`` says which clients take part, ``(N,)``, all by default."""
        options = dict(self.options)
        taking_part = torch.ones(len(clients), dtype=torch.bool) if present is None else torch.as_tensor(present)
        if taking_part.dtype != torch.bool or taking_part.shape != (len(clients),):
            raise ValueError(f"present must be one bool for each of {len(clients)} clients")
        counted = copy.deepcopy(self.participation)
        if counted is not None:
            options["weights"] = counted(taking_part) / len(clients)
        elif not bool(taking_part.all()):
            options["weights"] = self._of_those(clients, taking_part)
        steps = self.options.get("local_steps", _USUAL["local_steps"])
        info = RoundInfo(torch.full((len(clients), steps), torch.nan), torch.zeros(len(clients)))
        if bool(taking_part.any()):
            state, info = federated_round(self.model, clients, self.loss, self.attack, **options)
            self.model.load_state_dict(state)
        if self.participation is not None and counted is not None:
            self.participation.load_state_dict(counted.state_dict())
        self.rounds += 1
        return info

    def _of_those(self, clients: Sequence[Client], present: Tensor) -> Tensor:
        """The weights of the present clients, scaled to the sum of all clients' weights."""
        shares = check_clients(clients, self.options.get("weights", "uniform"))
        kept = shares * present
        return kept * (shares.sum() / kept.sum()) if bool(kept.sum() > 0) else kept

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the coming rounds depend."""
        generator = self.options.get("generator")
        return {
            "model": self.model.state_dict(),
            "rounds": self.rounds,
            "participation": None if self.participation is None else self.participation.state_dict(),
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        if self.participation is not None:
            self.participation.load_state_dict(state["participation"])
        if self.options.get("generator") is not None:
            self.options["generator"].set_state(state["generator"])
        self.rounds = state["rounds"]
