"""Sharpness-aware minimisation: steps by the gradient at the worst point near the parameters."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lossworks.checks import as_float, check_bool, check_positive
from lossworks.optim.steps import moved, norm_of
from lossworks.roles.wrapper import Closure, Wrapper

__all__ = ["GSAM", "SAM", "buffers_kept"]


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

    The weights are restored bit for bit, even if the second pass fails. When the gradients of each pass are averaged
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
        TypeError: ``optimizer`` is no torch optimizer, or is L-BFGS.
        ValueError: ``rho < 0``.
        RuntimeError: ``step()`` without a closure and before :meth:`ascend`, or :meth:`ascend` twice.

    Use it where a network fits its training rows and should generalise better; it takes twice the time. With a
    ``GradScaler``, unscale the gradients before :meth:`ascend`.

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

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer)
        if isinstance(optimizer, LBFGS):
            raise TypeError("optimizer must take one gradient per step, LBFGS takes several")
        self.rho = check_positive("rho", rho, allow_zero=True)
        self.adaptive = check_bool("adaptive", adaptive)
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch module or None, got {type(model).__name__}")
        self.model = model
        self._away: ExitStack | None = None
        self._clean: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def ascend(self) -> None:
        """Move to the worst point along the gradients and zero them; :meth:`step` moves back."""
        if self._away is not None:
            raise RuntimeError(f"{type(self).__name__} has ascended already: call step() first")
        parameters = self.parameters()
        self._clean = {p: p.grad.detach().clone() for p in parameters if p.grad is not None}
        steps = self._steps(parameters)
        self._away = ExitStack()
        self._away.enter_context(moved(parameters, steps))
        if self.model is not None:
            self._away.enter_context(buffers_kept(self.model))
        self.zero_grad()

    def _steps(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        gradients = [self._clean[p] for p in parameters]
        if self.adaptive:
            gradients = [p.abs() * gradient for p, gradient in zip(parameters, gradients, strict=True)]
        norm = norm_of(gradients)
        scale = torch.where(norm > 0, self.rho / norm, 0.0)
        if self.adaptive:
            gradients = [p.abs() * gradient for p, gradient in zip(parameters, gradients, strict=True)]
        return [scale.to(gradient.device) * gradient for gradient in gradients]

    def _come_back(self) -> None:
        away, self._away = self._away, None
        if away is not None:
            away.close()

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
        elif self._away is None:
            raise RuntimeError(
                f"{type(self).__name__} needs a closure, or ascend() and a second backward before step()"
            )
        self._come_back()
        self._combine()
        self._clean = {}
        self.inner.step()
        return loss

    def _combine(self) -> None:
        """Combine the two gradients in place; the second one is in ``grad``."""


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

    @torch.no_grad()
    def _combine(self) -> None:
        pairs = [(self._clean[p], p.grad) for p in self.parameters() if p.grad is not None and p in self._clean]
        if not pairs:
            return
        device = pairs[0][0].device
        inner = torch.stack([(clean.double() * worst.double()).sum().to(device) for clean, worst in pairs]).sum()
        square = torch.stack([worst.double().square().sum().to(device) for _, worst in pairs]).sum()
        share = torch.where(square > 0, inner / square, 0.0)
        for clean, worst in pairs:
            across = clean - share.to(worst) * worst
            worst.sub_(across, alpha=as_float(self.alpha))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers at the end to what they are now."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
