"""Training of surrogates whose mean output changes little when their weights do."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from lossworks.checks import as_float, check_choice, check_floating, check_positive, wide
from lossworks.optim.steps import maximised, moved, towards
from lossworks.roles.wrapper import Closure, Wrapper

__all__ = ["IGNITE"]


class IGNITE(Wrapper):
    r"""IGNITE: trains a surrogate with a price on how much its mean output may change near its weights.

    .. math::
        \min_\beta L(\beta) + \lambda \rho\, \|\nabla_\beta G(\beta)\|_2, \qquad G(\beta) = \tfrac1n \sum_i g_\beta(x_i)

    The price's gradient is computed by a finite difference,
    :math:`\tfrac{\lambda \rho}{r} \big(\nabla G(\beta + r u) - \nabla G(\beta)\big)` with
    :math:`u = \nabla G / \|\nabla G\|`, which costs two passes; the weights are restored bit for bit. With
    ``mode="constrained"`` the multiplier is adapted so that :math:`\rho \|\nabla G\| \le \epsilon`:
    :math:`\lambda \leftarrow \max(\lambda + \eta\,(\rho \|\nabla G\| - \epsilon), 0)`.

    The price is computed on the rows given to :meth:`price`. When a batch is split over ranks or micro-batches and the
    gradients are averaged as those of the loss are, the price is that of the shards' norms and not of the whole's norm:
    give :meth:`price` whole batches.

    Args:
        optimizer: Any torch optimizer of the surrogate.
        model: The surrogate :math:`g`, from rows to one number per row.
        mode: ``"constrained"`` to adapt the multiplier, or ``"fixed"`` to keep it.
        lam: The multiplier :math:`\lambda` at the start, >= 0; by default 1e-3 if constrained and 1e-2 if fixed.
        rho: How far the weights may move, > 0; by default 0.05 if constrained and 0.2 if fixed.
        r: The length of the finite difference, > 0; the same as ``rho`` by default.
        epsilon: The bound on the price in constrained mode, in output units, > 0.
        eta: The step size of the multiplier in constrained mode, >= 0.

    Shape:
        - x: ``(n, ...)``, the model's input; the model returns ``(n,)`` or ``(n, 1)``.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer, or ``model`` is no module.
        ValueError: an unknown mode, numbers out of range, an output of another shape, no rows.

    Use it to train a surrogate that an optimiser will then climb, and so call away from its training data. In each step
    call ``price(x)`` after ``backward`` and before ``step``, or call ``step(closure, x=x)``. With a ``GradScaler``,
    unscale the gradients before ``price``.

    Papers: dao2024ignite

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> optimizer = IGNITE(torch.optim.Adam(model.parameters()), model)
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> (model(x) - y).square().mean().backward()
    >>> optimizer.price(x) > 0
    tensor(True)
    >>> optimizer.step()
    """

    papers = ("dao2024ignite",)
    helps = ("shift", "overfitting")
    settings = ({}, {"mode": "fixed"})
    own = ("lam",)
    asks_rows = True

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        mode: str = "constrained",
        *,
        lam: float | None = None,
        rho: float | None = None,
        r: float | None = None,
        epsilon: float = 0.1,
        eta: float = 1e-3,
    ) -> None:
        super().__init__(optimizer)
        self._refuse_several_gradients()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch module, got {type(model).__name__}")
        self.model = model
        self.mode = check_choice("mode", mode, ("constrained", "fixed"))
        constrained = mode == "constrained"
        self.lam = check_positive("lam", (1e-3 if constrained else 1e-2) if lam is None else lam, allow_zero=True)
        self.rho = check_positive("rho", (0.05 if constrained else 0.2) if rho is None else rho)
        self.r = check_positive("r", self.rho if r is None else r)
        self.epsilon = check_positive("epsilon", epsilon)
        self.eta = check_positive("eta", eta, allow_zero=True)

    def price(self, x: Float[Tensor, "n *features"]) -> Float[Tensor, ""]:
        """Add the price's gradient to the gradients, adapt the multiplier, and return the price without multiplier."""
        check_floating("x", x)
        if x.ndim == 0 or not len(x):
            raise ValueError(f"x must have rows, got shape {tuple(x.shape)}")
        parameters = [p for group in self.inner.param_groups for p in group["params"] if p.requires_grad]
        here = self._slope(x, parameters)
        priced = [p for p in parameters if p in here]
        moves, norm = towards(priced, list(here.values()), self.r)
        with moved(moves):
            there = self._slope(x, parameters) if bool(norm > 0) else {}
        scale, raised = as_float(self.lam) * as_float(self.rho) / as_float(self.r), maximised(self.inner)
        with torch.no_grad():
            for p in there:
                change = (-scale if p in raised else scale) * (wide(there[p]) - wide(here[p]))
                p.grad = (change if p.grad is None else p.grad + change).to(p.dtype)
        price = self.rho * norm
        if self.mode == "constrained":
            self.lam = max(as_float(self.lam) + as_float(self.eta) * (float(price) - as_float(self.epsilon)), 0.0)
        return price

    def _slope(self, x: Tensor, parameters: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """The gradient of the mean output in those parameters that it depends on."""
        with torch.enable_grad():
            output = self.model(x)
            if output.numel() != len(x):
                raise ValueError(f"model must give one number a row, {len(x)} rows gave {tuple(output.shape)}")
            found = torch.autograd.grad(output.mean(), parameters, allow_unused=True)
        return {p: g for p, g in zip(parameters, found, strict=True) if g is not None}

    def step(self, closure: Closure | None = None, *, x: Tensor | None = None) -> Any:
        """Take one step of the inner optimizer; with ``x`` the price is added after the closure's ``backward``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if x is not None:
            self.price(x)
        self.inner.step()
        return loss
