"""The stacked objectives of several replicas: one module with stacked tensors, and its gradient at the outputs."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lossworks.checks import checks
from lossworks.objective import Objective
from lossworks.roles import Loss, Part

__all__ = ["StackedObjective", "State", "call", "over_replicas", "signature"]

State = dict[str, Tensor]


def over_replicas(
    function: Callable[[State, State], tuple[Tensor, State]], state: State, batch: State
) -> tuple[Tensor, State]:
    """Call the function on all replicas' states and batches at once by ``vmap``; a single replica needs no ``vmap``."""
    if len(next(iter(batch.values()))) > 1:
        return vmap(function, randomness="different")(state, batch)
    value, changed = function({k: t[0] for k, t in state.items()}, {k: t[0] for k, t in batch.items()})
    return value[None], {k: t[None] for k, t in changed.items()}


def call(module: nn.Module, state: State, arguments: State) -> tuple[Tensor, State]:
    """Call the module with these tensors in place of its own; return its value and the tensors that it replaced."""
    used = dict(state)
    value = functional_call(module, used, (), arguments, tie_weights=False)
    return value, {name: used[name] for name in state if used[name] is not state[name]}


def signature(objective: Objective) -> tuple[object, ...]:
    """The key of objectives that can be stacked: their parts, everything but tensors, and the tensors' shapes."""
    plain = [
        (name, type(module), sorted((k, repr(v)) for k, v in vars(module).items() if not k.startswith("_")))
        for name, module in objective.named_modules()
    ]
    tensors = [(name, t.shape, t.dtype) for name, t in (*objective.named_buffers(), *objective.named_parameters())]
    return (repr(plain), tuple(tensors))


class _Risk(nn.Module):
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, output: Tensor, target: Tensor, index: Tensor, group: Tensor | None = None) -> Tensor:
        return self.objective.risk(output, target, index=index, group=group)


class StackedObjective:
    """The objectives of several replicas, all of one :func:`signature`, with each buffer stacked over the replicas.

    Args:
        objectives: The objective of each replica; they are copied.
        device: The device of their tensors.

    Attributes:
        base: The module that computes all of them.
        buffers: The stacked buffers ``(R, ...)`` by name; they keep what a part remembers in training.
    """

    def __init__(self, objectives: Sequence[Objective], device: torch.device) -> None:
        self.each = [copy.deepcopy(objective).to(device).train() for objective in objectives]
        named = [dict(objective.named_buffers()) for objective in self.each]
        self.buffers: State = {name: torch.stack([buffers[name] for buffers in named]) for name in named[0]}
        parts = [module for module in self.base.modules() if isinstance(module, Part)]
        self._pooled = self._rows_are_alike(parts)

    @property
    def base(self) -> Objective:
        """The objective of the first replica, through which all are computed."""
        return self.each[0]

    @property
    def risk_alone(self) -> bool:
        """Whether the objective reads nothing but the model's outputs and has no learned parameters."""
        learned = any(True for _ in self.base.parameters())
        return self.base.perturb is None and not self.base.penalties and not learned

    def set_progress(self, fraction: float) -> None:
        """Pass the progress of the training to every part with a schedule."""
        if not self.base.scheduled:
            return
        for number, objective in enumerate(self.each):
            for name, buffer in objective.named_buffers():
                buffer.copy_(self.buffers[name][number])
            objective.set_progress(fraction)
            for name, buffer in objective.named_buffers():
                self.buffers[name][number] = buffer

    def keep(self, replicas: Sequence[int]) -> None:
        """Keep only these replicas."""
        self.each = [self.each[number] for number in replicas]
        self.buffers = {name: buffer[list(replicas)] for name, buffer in self.buffers.items()}

    def update(self, changed: Mapping[str, Tensor], prefix: str = "objective.") -> None:
        """Store the buffers that a part replaced."""
        self.buffers |= {
            name.removeprefix(prefix): t.detach() for name, t in changed.items() if name.startswith(prefix)
        }

    def output_gradient(self, output: Tensor, batch: State) -> Tensor:
        """The gradient of each replica's risk at its outputs ``(R, b, k)``, or ``(R, b)`` for a single output."""
        # A replica that diverges is found at the next evaluation; it must not stop the others.
        with checks(False):
            return self._gradient(output, batch)

    def _gradient(self, output: Tensor, batch: State) -> Tensor:
        rows = output.shape[:2]
        if self._pooled:
            flat, target = output.flatten(0, 1), batch["target"].flatten(0, 1)
            form = self.base.loss.closed_form(flat.shape[-1]) if isinstance(self.base.loss, Loss) else None
            gradient = (
                self._pooled_gradient(flat, target, rows[1])
                if form is None or form.gradient is None
                else form.gradient(flat, target) / self._divisor(rows[1])
            )
            return gradient.view_as(output)
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            state = {f"objective.{name}": buffer for name, buffer in self.buffers.items()}
            module = _Risk(self.base)
            risks, changed = over_replicas(lambda s, b: call(module, s, b), state, {"output": leaf, **batch})
            (gradient,) = torch.autograd.grad(risks.sum(), leaf)
        self.update(changed)
        return gradient

    def _pooled_gradient(self, output: Tensor, target: Tensor, rows: int) -> Tensor:
        """The gradient for all replicas' rows as one batch, with the mean over each replica's own rows."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            risk = self.base.risk(leaf, target, total=float(rows))
            (gradient,) = torch.autograd.grad(risk, leaf)
        return gradient

    def _divisor(self, rows: int) -> float:
        return rows if self.base.loss.reduction == "mean" else 1

    def _rows_are_alike(self, parts: Sequence[Part]) -> bool:
        """Whether all replicas use the same rowwise loss in the same setting, so that their rows can be one batch."""
        loss = self.base.loss
        plain = isinstance(loss, Loss) and loss.rowwise and self.base.weights is None and not loss.needs_index
        drawn = any(part.couples_batch or part.stochastic for part in parts)
        return plain and not drawn and all(bool((b == b[:1]).all()) for b in self.buffers.values())
