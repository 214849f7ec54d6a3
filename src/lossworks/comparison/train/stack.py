"""Stacks: networks of one architecture with their parameters stacked, so that they are stepped together.

:class:`LayerStack` has the gradient of linear layers written out, in a few large operations per step.
:class:`ModuleStack` trains any module through ``torch.func``. Both give the same numbers.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from lossworks.checks import checks
from lossworks.comparison.train.risk import StackedObjective, State, call, over_replicas
from lossworks.objective import Objective

__all__ = ["FlatAdamW", "LayerStack", "ModuleStack", "Stack"]

COLUMNS = 16
"""The outputs are padded to a multiple of this, as a product with 10 columns takes three times as long as with 16."""


class FlatAdamW:
    """AdamW on one flat buffer of all parameters of all replicas; each parameter is a contiguous view of it."""

    def __init__(self, parameters: State, lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self._shapes = {name: tensor.shape for name, tensor in parameters.items()}
        self._values = torch.cat([tensor.detach().flatten() for tensor in parameters.values()])
        self._gradients, self._first, self._second = (torch.zeros_like(self._values) for _ in range(3))
        self._steps = torch.zeros((), device=self._values.device)
        self._bind()

    def _bind(self) -> None:
        self.values, self.gradients = self._views(self._values), self._views(self._gradients)

    def _views(self, flat: Tensor) -> State:
        pieces = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def step(self) -> None:
        """Take one step by the current gradients."""
        adamw(
            [self._values],
            [self._gradients],
            [self._first],
            [self._second],
            [],
            [self._steps],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def keep(self, replicas: Sequence[int]) -> None:
        """Keep only these replicas."""
        flats = [self._values, self._gradients, self._first, self._second]
        kept = [{name: view[list(replicas)] for name, view in self._views(flat).items()} for flat in flats]
        self._shapes = {name: tensor.shape for name, tensor in kept[0].items()}
        self._values, self._gradients, self._first, self._second = (
            torch.cat([tensor.flatten() for tensor in views.values()]) for views in kept
        )
        self._bind()


class Stack(Protocol):
    """A stack of replicas that are trained together."""

    objective: StackedObjective

    def step(self, x: Tensor, batch: State) -> None:
        """Take one step on ``x`` ``(R, b, *shape)``; the batch has ``target``, ``index`` and maybe ``group``."""

    def outputs(self, x: Tensor, replicas: slice) -> Tensor:
        """The outputs ``(r, n, k)`` of some replicas for ``x`` ``(r, n, *shape)``, in evaluation mode."""

    def snapshot(self, replica: int) -> State:
        """A copy of one replica's network state, in the form of its ``state_dict``."""

    def keep(self, replicas: Sequence[int]) -> None:
        """Keep only these replicas."""


class LayerStack:
    """Stack for linear layers with ReLU between them, with the forward and backward pass written out."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        objectives: Sequence[Objective],
        lr: float,
        weight_decay: float,
        squeeze: bool,
    ) -> None:
        layers = [[m for m in network.modules() if isinstance(m, nn.Linear)] for network in networks]
        self._names = [name for name, m in networks[0].named_modules() if isinstance(m, nn.Linear)]
        self._squeeze = squeeze
        self._outputs = layers[0][-1].out_features
        device = layers[0][0].weight.device
        parameters = {}
        for number, name in enumerate(self._names):
            same = [replica[number] for replica in layers]
            pad = (0, -self._outputs % COLUMNS if number == len(self._names) - 1 else 0)
            parameters[f"{name}.weight"] = nn.functional.pad(torch.stack([m.weight.detach().T for m in same]), pad)
            parameters[f"{name}.bias"] = nn.functional.pad(torch.stack([m.bias.detach() for m in same]), pad)
        self._optimizer = FlatAdamW(parameters, lr, weight_decay)
        self.objective = StackedObjective(objectives, device)
        self._bind()

    def _bind(self) -> None:
        values, gradients = self._optimizer.values, self._optimizer.gradients
        self._weights = [values[f"{name}.weight"] for name in self._names]
        self._biases = [values[f"{name}.bias"][:, None] for name in self._names]
        self._weight_gradients = [gradients[f"{name}.weight"] for name in self._names]
        self._bias_gradients = [gradients[f"{name}.bias"] for name in self._names]
        self._after: list[Tensor] = []
        self._before: list[Tensor] = []

    def _allocate(self, rows: int) -> None:
        shapes = [(len(weight), rows, weight.shape[2]) for weight in self._weights]
        self._after = [self._weights[0].new_zeros(shape) for shape in shapes]
        self._before = [self._weights[0].new_zeros(shape) for shape in shapes]

    def step(self, x: Tensor, batch: State) -> None:
        """Take one step on a batch, by the gradient that is written out."""
        if not self._after or self._after[0].shape[1] != x.shape[1]:
            self._allocate(x.shape[1])
        inputs = [x.flatten(2), *self._after[:-1]]
        last = len(inputs) - 1
        for number, source in enumerate(inputs):
            torch.baddbmm(self._biases[number], source, self._weights[number], out=self._after[number])
            if number < last:
                self._after[number].relu_()
        output = self._after[-1][..., : self._outputs]
        gradient = self.objective.output_gradient(output[..., 0] if self._squeeze else output, batch)
        self._before[-1][..., : self._outputs] = gradient[..., None] if self._squeeze else gradient
        for number in range(last, -1, -1):
            arriving = self._before[number]
            torch.bmm(inputs[number].mT, arriving, out=self._weight_gradients[number])
            torch.sum(arriving, dim=1, out=self._bias_gradients[number])
            if number:
                leaving, active = self._before[number - 1], self._after[number - 1]
                torch.bmm(arriving, self._weights[number].mT, out=leaving)
                torch.ops.aten.threshold_backward.grad_input(leaving, active, 0, grad_input=leaving)
        self._optimizer.step()

    def outputs(self, x: Tensor, replicas: slice) -> Tensor:
        """The outputs ``(r, n, k)`` of some replicas for ``x`` ``(r, n, *shape)``."""
        hidden = x.flatten(2)
        for number, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if number:
                hidden.relu_()
            hidden = torch.baddbmm(bias[replicas], hidden, weight[replicas])
        return hidden[..., : self._outputs]

    def snapshot(self, replica: int) -> State:
        """A copy of one replica's network state, without the padding of its last layer."""
        state = {}
        for number, name in enumerate(self._names):
            size = self._outputs if number == len(self._names) - 1 else self._weights[number].shape[2]
            state[f"{name}.weight"] = self._weights[number][replica, :, :size].T.clone(
                memory_format=torch.contiguous_format
            )
            state[f"{name}.bias"] = self._biases[number][replica, 0, :size].clone()
        return state

    def keep(self, replicas: Sequence[int]) -> None:
        """Keep only these replicas."""
        self._optimizer.keep(replicas)
        self.objective.keep(replicas)
        self._bind()


class _Training(nn.Module):
    """A network and its objective as one module, which maps a batch to the value to minimise."""

    def __init__(self, network: nn.Module, objective: Objective, squeeze: bool) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.model = nn.Sequential(network, nn.Flatten(0)) if squeeze else network

    def forward(self, x: Tensor, target: Tensor, index: Tensor, group: Tensor | None = None) -> Tensor:
        return self.objective(self.model, x, target, index=index, group=group)


class ModuleStack:
    """Stack for any module and any objective, through ``torch.func``."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        objectives: Sequence[Objective],
        lr: float,
        weight_decay: float,
        squeeze: bool,
    ) -> None:
        self.objective = StackedObjective(objectives, next(networks[0].parameters()).device)
        self._network = networks[0]
        self._training = _Training(self._network, self.objective.base, squeeze)
        names = [name for name, _ in self._network.named_parameters()]
        learned = [name for name, _ in self.objective.base.named_parameters()]
        each, own = ([dict(m.named_parameters()) for m in modules] for modules in (networks, self.objective.each))
        self._optimizers = [
            FlatAdamW({f"{prefix}.{n}": torch.stack([one[n] for one in found]) for n in wanted}, lr, decay)
            for prefix, wanted, found, decay in (
                ("network", names, each, weight_decay),
                ("objective", learned, own, 0.0),
            )
            if wanted
        ]
        buffers = [dict(network.named_buffers()) for network in networks]
        self._buffers: State = {f"network.{n}": torch.stack([b[n] for b in buffers]) for n in buffers[0]}

    def _parameters(self) -> State:
        return {name: view for optimizer in self._optimizers for name, view in optimizer.values.items()}

    def step(self, x: Tensor, batch: State) -> None:
        """Take one step on a batch, by autograd through the network and the objective."""
        self._network.train()
        with torch.enable_grad(), checks(False):
            leaves = {name: view.detach().requires_grad_() for name, view in self._parameters().items()}
            remembered = {f"objective.{name}": buffer for name, buffer in self.objective.buffers.items()}
            state = {**leaves, **self._buffers, **remembered}
            values, changed = over_replicas(lambda s, b: call(self._training, s, b), state, {"x": x, **batch})
            found = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
        gradients = dict(zip(leaves, found, strict=True))
        self.objective.update(changed)
        self._buffers |= {name: tensor.detach() for name, tensor in changed.items() if name in self._buffers}
        for optimizer in self._optimizers:
            for name, view in optimizer.gradients.items():
                gradient = gradients[name]
                view.zero_() if gradient is None else view.copy_(gradient)
            optimizer.step()

    def outputs(self, x: Tensor, replicas: slice) -> Tensor:
        """The outputs ``(r, n, k)`` of some replicas for ``x`` ``(r, n, *shape)``, in evaluation mode."""
        self._network.eval()
        state = {
            name.removeprefix("network."): t[replicas]
            for name, t in (self._optimizers[0].values | self._buffers).items()
        }

        def outputs(one: State, rows: Tensor) -> Tensor:
            return functional_call(self._network, one, (rows,))

        if len(x) == 1:
            return outputs({name: t[0] for name, t in state.items()}, x[0])[None]
        return vmap(outputs)(state, x)

    def snapshot(self, replica: int) -> State:
        """A copy of one replica's network state, in the form of its ``state_dict``."""
        state = self._optimizers[0].values | self._buffers
        return {name.removeprefix("network."): tensor[replica].clone() for name, tensor in state.items()}

    def keep(self, replicas: Sequence[int]) -> None:
        """Keep only these replicas."""
        for optimizer in self._optimizers:
            optimizer.keep(replicas)
        self.objective.keep(replicas)
        self._training.objective = self.objective.base
        self._buffers = {name: buffer[list(replicas)] for name, buffer in self._buffers.items()}
