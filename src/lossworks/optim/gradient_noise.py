"""Noise on the gradient that fades as training goes on."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, SparseAdam

from lossworks.checks import as_float, check_generator, check_int, check_positive
from lossworks.optim.steps import gathered, norm_of
from lossworks.roles import cite
from lossworks.roles.wrapper import Closure, Wrapper

__all__ = ["AnnealedGradientNoise", "gradient_noise_std"]


@cite("neelakantan2015noise", helps=("overfitting",))
def gradient_noise_std(step: int, eta: float = 0.3, gamma: float = 0.55) -> float:
    r"""The standard deviation of annealed gradient noise at a training step.

    .. math:: \sigma_t = \sqrt{\eta / (1 + t)^\gamma}

    Args:
        step: t, counted from 0.
        eta: The variance at the first step, in squared gradient units, >= 0.
        gamma: How fast the noise fades, >= 0; 0 keeps it constant.

    Returns:
        :math:`\sigma_t`, in gradient units.

    Raises:
        ValueError: a number below 0.

    Papers: neelakantan2015noise

    >>> gradient_noise_std(0, eta=0.25)
    0.5
    """
    check_int("step", step, low=0)
    check_positive("eta", eta, allow_zero=True)
    check_positive("gamma", gamma, allow_zero=True)
    return as_float(eta) ** 0.5 * math.exp(-0.5 * as_float(gamma) * math.log1p(step))


class AnnealedGradientNoise(Wrapper):
    r"""Annealed gradient noise: adds normal noise, which fades over training, to the gradient before each step.

    .. math:: g_t \leftarrow g_t + N(0, \sigma_t^2 I), \qquad \sigma_t^2 = \eta / (1 + t)^\gamma

    Gradients are clipped before the noise is added; the noise itself is not clipped. Ranks that hold the same weights
    must draw the same noise, so give each rank a generator in the same state. Micro-batches add up their gradients
    before the step, so a split changes nothing. A sparse gradient becomes dense, since the noise is on all of it.

    Args:
        optimizer: Any torch optimizer.
        eta: The variance at the first step, in squared gradient units, >= 0; 0 is the plain optimizer.
        gamma: How fast the noise fades, >= 0.
        clip: The norm to which all gradients together are clipped, > 0; no clipping by default.
        generator: Where the noise is drawn from; torch's own generator by default.

    Shape:
        - closure: a function without arguments that returns the loss; it may be left out.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer.
        ValueError: ``eta < 0``, ``gamma < 0``, ``clip <= 0``.

    Use it for very deep networks that do not begin to learn. Where training already works it costs accuracy.

    Papers: neelakantan2015noise

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.zeros(2)
    >>> optimizer = AnnealedGradientNoise(torch.optim.SGD([weight], lr=1.0))
    >>> optimizer.step()
    >>> optimizer.steps, bool((weight != 0).all())
    (1, True)
    """

    papers = ("neelakantan2015noise",)
    helps = ("overfitting",)
    settings = ({}, {"eta": 0.01, "clip": 1.0})
    own = ("steps",)
    stochastic = True

    def __init__(
        self,
        optimizer: Optimizer,
        eta: float = 0.3,
        gamma: float = 0.55,
        *,
        clip: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(optimizer)
        for inside in self._layers():
            if isinstance(inside, Wrapper) and inside.takes_outputs:
                raise TypeError(
                    f"optimizer must leave backward to the closure, {type(inside).__name__} calls it itself"
                )
            if isinstance(inside, SparseAdam) and as_float(eta):
                raise TypeError("optimizer must take dense gradients, which noise makes of all, SparseAdam does not")
        self.eta = check_positive("eta", eta, allow_zero=True)
        self.gamma = check_positive("gamma", gamma, allow_zero=True)
        self.clip = None if clip is None else check_positive("clip", clip)
        self.generator = check_generator("generator", generator)
        self.steps = 0

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the inner optimizer on noisy gradients."""
        if self._makes_state(closure):
            return self.inner.step()
        if closure is None:
            self._add_noise()
            loss = self.inner.step()
        else:

            def noisy() -> Any:
                with torch.enable_grad():
                    value = closure()
                self._add_noise()
                return value

            loss = self.inner.step(noisy)
        self.steps += 1
        return loss

    @torch.no_grad()
    def _add_noise(self) -> None:
        parameters = self.parameters()
        if self.clip is not None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = norm_of([gathered(gradient)[1] for gradient in gradients])
            share = (as_float(self.clip) / (norm + 1e-6)).clamp(max=1.0)
            for long in gradients:
                long.mul_(share.to(long.device))
        std = gradient_noise_std(self.steps, as_float(self.eta), as_float(self.gamma))
        for parameter in parameters if std else ():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
            gradient = parameter.grad
            assert isinstance(gradient, Tensor)
            noise = torch.empty_like(gradient).normal_(generator=self.generator)
            gradient.add_(noise, alpha=std)
