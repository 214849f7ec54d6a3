"""Sharpness-aware minimisation: steps by the gradient at the worst point near the parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from lossworks.checks import as_float, check_bool, check_positive, wide
from lossworks.optim.steps import Move, gathered, maximised, norm_of, towards
from lossworks.roles.wrapper import Closure, Wrapper

__all__ = ["GSAM", "SAM"]


class SAM(Wrapper):
    r"""Sharpness-aware minimisation (SAM): any optimizer, with the gradient at the worst point near the weights.

    .. math::
        \min_\theta \max_{\|\epsilon\|_2 \le \rho} L(\theta + \epsilon), \qquad
        \epsilon^* \approx \rho\, \frac{\nabla L(\theta)}{\|\nabla L(\theta)\|_2}

    With ``adaptive`` the ball is wider for larger weights (ASAM), so that rescaling the layers changes nothing:
    :math:`\epsilon^* = \rho\, |\theta|^2 \nabla L / \| |\theta| \nabla L \|`.

    A step takes two gradients. Either call ``step(closure)``, where the closure calls ``zero_grad``, computes the loss
    and calls ``backward``, or write both passes into your own loop::

        loss().backward()
        optimizer.ascend()  # moves to the worst point and zeroes the gradients
        loss().backward()
        optimizer.step()

    The weights are restored bit for bit, even if the second pass fails. Where the inner optimizer maximises, the worst
    point is the one of the lowest objective. When the gradients of each pass are averaged
    over ranks, or added up over micro-batches, every rank takes the whole batch's step. Gradients of one rank's own
    rows give another method (m-SAM).

    Args:
        optimizer: Any torch optimizer except L-BFGS, which evaluates more than one point per step by itself.
        rho: The ball's radius, in the units of the weights, >= 0; 0 is the plain optimizer.
        adaptive: Whether the ball is scaled by the weights' sizes; if so, take ``rho`` about 10 times as large.
        model: The model whose buffers (batch statistics) the second pass must leave unchanged; by default both passes
            update them.

    Shape:
        - closure: a function without arguments that returns the loss.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer, or takes several gradients per step (L-BFGS, SAM).
        ValueError: ``rho < 0``.
        RuntimeError: ``step()`` without a closure and before :meth:`ascend`, or :meth:`ascend` twice.

    Use it where a network fits its training rows and should generalise better; it takes twice the time. Beside a
    ``GradScaler`` write both passes out and scale each loss; ``scaler.step`` unscales the second pass, and leaves the
    step out where either pass overflows. ``scaler.unscale_`` may be called after each pass, and need not be.

    Papers: foret2021sam, kwon2021asam

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = weight.square().sum() / 2
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure), weight.detach()
    (tensor(12.5000, grad_fn=<DivBackward0>), tensor([2.6700, 3.5600]))
    """

    papers: ClassVar[tuple[str, ...]] = ("foret2021sam", "kwon2021asam")
    helps: ClassVar[tuple[str, ...]] = ("overfitting", "noisy labels")
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({}, {"rho": 0.5, "adaptive": True})
    gradients = 2

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer)
        self._refuse_several_gradients()
        self.rho = check_positive("rho", rho, allow_zero=True)
        self.adaptive = check_bool("adaptive", adaptive)
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch module or None, got {type(model).__name__}")
        self.model = model
        self._away: list[Move] | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._back = False
        self._norm = torch.zeros(())
        self._scaler: tuple[GradScaler, Optimizer] | None = None

    @torch.no_grad()
    def ascend(self) -> None:
        """Move to the worst point along the gradients and zero them; :meth:`step` moves back."""
        if self._away is not None:
            raise RuntimeError(f"{type(self).__name__} has ascended already: call step() first")
        parameters = self.parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = [] if self.model is None else [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        moves, self._norm = towards(
            parameters, gradients, self.rho, adaptive=self.adaptive, against=maximised(self.inner)
        )
        if self._scaler is not None:  # the second pass's gradients must be unscaled too
            scaler, outermost = self._scaler
            scaler._per_optimizer_states[id(outermost)]["stage"] = OptState.READY
        self._remember(parameters, gradients)
        self._away, self._buffers, self._back = moves, buffers, False
        self.zero_grad()

    def _remember(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        """Keep what :meth:`_combine` needs of the first pass."""

    @torch.no_grad()
    def _come_back(self) -> None:
        for move in self._away or ():
            move.undo()
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self._away, self._buffers = None, []

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of the inner optimizer by the worst point's gradient; return the closure's first loss."""
        loss = None
        if closure is not None:
            if self._away is not None:
                raise RuntimeError(f"{type(self).__name__} has ascended already: call step() without a closure")
            with torch.enable_grad():
                loss = closure()
            self.ascend()
            try:
                with torch.enable_grad():
                    closure()
            except BaseException:
                self._come_back()
                raise
        elif self._away is None and not self._back:
            if self._makes_state(closure):
                return self.inner.step()
            raise RuntimeError(
                f"{type(self).__name__} needs a closure, or ascend() and a second backward before step()"
            )
        self._come_back()
        self._combine()
        self._back, self._scaler = False, None
        self.inner.step()
        return loss

    def _combine(self) -> None:
        """Combine the two gradients in place; the second one is in ``grad``."""

    # Beside a GradScaler: it unscales each pass, and weights come back also where it leaves the step out.

    def _unscaled(self, scaler: GradScaler, outermost: Optimizer) -> None:
        if self._scaler is None and (self._away is not None or self._back):
            self._unscale_first(1 / scaler.get_scale())
        self._scaler = (scaler, outermost)

    def _unscale_first(self, factor: float) -> None:
        """Multiply what is kept of the first pass, which was not unscaled before :meth:`ascend`."""

    @torch.no_grad()
    def _before_scaled_step(self, scaler: GradScaler, outermost: Optimizer) -> None:
        self._back = self._away is not None
        if not self._back:
            return
        self._come_back()
        held = scaler._per_optimizer_states[id(outermost)]
        if held["stage"] is OptState.READY:
            scaler.unscale_(outermost)
        for device, found in held["found_inf_per_device"].items():
            found.add_((~self._norm.isfinite()).to(device))
        self._scaler = None


class GSAM(SAM):
    r"""GSAM: SAM that also closes the gap between the worst point's loss and the loss at the weights.

    .. math::
        \theta \leftarrow \theta - \eta\,(g_p - \alpha\, g_\perp), \qquad
        g_\perp = g - \frac{\langle g, g_p \rangle}{\|g_p\|^2}\, g_p

    with :math:`g` the gradient at the weights and :math:`g_p` the one at the worst point. The step descends the worst
    point's loss as SAM does, and also lowers the gap without raising the worst point's loss to first order.

    When the batch is split over ranks or micro-batches, it is exact under the same conditions as :class:`SAM`. It has
    the same two ways to take a step.

    Args:
        optimizer: Any torch optimizer except L-BFGS.
        rho: The ball's radius, in the units of the weights, >= 0.
        alpha: The weight of the orthogonal part, >= 0; 0 is SAM.
        adaptive: As in :class:`SAM`.
        model: As in :class:`SAM`.

    Shape:
        - closure: a function without arguments that returns the loss.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer, or is L-BFGS.
        ValueError: ``rho < 0``, ``alpha < 0``.
        RuntimeError: as in :class:`SAM`.

    Use it in place of SAM where ``rho`` is small enough that the worst point's loss is close to the loss itself.

    Papers: zhuang2022gsam

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> GSAM(torch.optim.SGD([weight], lr=0.1), alpha=0.2).param_groups[0]["lr"]
    0.1
    """

    papers = ("zhuang2022gsam",)
    helps = ("overfitting",)

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float = 0.05,
        alpha: float = 0.2,
        *,
        adaptive: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer, rho, adaptive=adaptive, model=model)
        self.alpha = check_positive("alpha", alpha, allow_zero=True)

        self._clean: dict[nn.Parameter, Tensor] = {}

    def _remember(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        self._clean = {p: gradient.detach().clone() for p, gradient in zip(parameters, gradients, strict=True)}

    def _unscale_first(self, factor: float) -> None:
        self._clean = {p: wide(gradient) * factor for p, gradient in self._clean.items()}

    @torch.no_grad()
    def _combine(self) -> None:
        clean, self._clean = self._clean, {}
        pairs = [(p, clean.get(p), p.grad) for group in self.inner.param_groups for p in group["params"]]
        both = [(first, worst) for _, first, worst in pairs if first is not None and worst is not None]
        if not both:
            return
        device = both[0][0].device
        inner = torch.stack([_product(first, worst).to(device) for first, worst in both]).sum()
        square = norm_of([gathered(worst)[1] for _, _, worst in pairs if worst is not None]).square().to(device)
        share = torch.where(square > 0, inner / square, 0.0)
        alpha = as_float(self.alpha)
        for p, first, worst in pairs:
            if worst is None:
                p.grad = None if first is None else (-alpha * first).to(p.dtype)
                continue
            along = wide(worst) * share.to(worst.device)
            across = -along if first is None else wide(first) - along
            combined = (wide(worst) - alpha * across).to(worst.dtype)
            p.grad = worst.copy_(combined) if worst.layout is combined.layout is torch.strided else combined


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The inner product of two gradients, in float64."""
    if first.is_sparse or second.is_sparse:
        if not first.is_sparse:
            first, second = second, first
        rows, first = gathered(first)
        second = (second.to_dense() if second.is_sparse else second)[rows]
    if first.is_complex():
        first, second = torch.view_as_real(first), torch.view_as_real(second)
    return (first.double() * second.double()).sum()
