"""Attacks that look for the worst input near the given one by following the risk's gradient."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import (
    check_bool,
    check_floating,
    check_generator,
    check_int,
    check_positive,
    check_sequence,
    check_tensor,
    shown,
)
from lossworks.perturb.ball import Ball, Bounds, check_ball
from lossworks.perturb.inference import OrdinaryTensors, ordinary, said_of_inference
from lossworks.roles import Perturbation

Risk = Callable[[Tensor], Float[Tensor, " n"]]


class PGD(Perturbation):
    r"""Projected gradient descent attack (PGD): looks for the worst input in a ball around each row.

    .. math::
        \max_{\|\delta_i\|_p \le \varepsilon} \ell(f(x_i + \delta_i), y_i), \qquad
        x^{t+1} = \Pi_{B(x, \varepsilon)}\big(x^t + \alpha\, d(\nabla_x \ell(x^t))\big)

    with :math:`d(g) = \mathrm{sign}(g)` for linf and :math:`g / \|g\|_2` for l2. Each row keeps the worst input met
    over all steps and restarts, the clean input included, so a row's risk is never below its clean risk. The changed
    input lies in the ball and within ``bounds`` exactly, not only up to rounding.

    Starting points are drawn for the rows at hand, so a batch that is split gets other ones than the whole batch.
    Without ``random_start`` nothing is drawn, and a split changes nothing wherever the risk's slopes are larger than
    rounding. A slope that is 0 by definition has no sign but rounding's, so start at random where the risk has its
    minimum at the clean input.

    A slope that is NaN leaves its coordinate where it is. In l2 a row with infinite slopes moves along these alone.
    The search also works under ``torch.no_grad()`` and ``torch.inference_mode()``.

    Each restart costs ``steps`` forward and backward passes and one forward pass at its end. A random start costs one
    more forward pass, on the clean input.

    Args:
        eps: The ball's radius :math:`\varepsilon`, in the input's units, >= 0.
        steps: The number of steps in each restart, >= 1.
        step_size: The length :math:`\alpha` of a step, in the input's units, > 0; by default ``2.5 * eps / steps``.
        norm: ``"linf"``, the largest change of any coordinate, or ``"l2"``, the Euclidean length of the row's change.
        restarts: How often the search is started, >= 1; more than once needs ``random_start``.
        random_start: Whether the search starts at a random point of the ball; otherwise it starts at the clean input.
        bounds: The data's range ``(low, high)``, numbers or tensors that broadcast to x; no range by default.
        columns: The columns of x ``(n, d)`` that may change, such as the numeric ones; all by default. The ball and
            ``bounds`` then apply to these columns alone.
        generator: Where the starting points are drawn from; torch's own generator by default.

    Shape:
        - x: ``(n, ...)`` floating-point; returns the same shape and dtype, without a graph.

    Raises:
        ValueError: ``eps < 0``, ``step_size <= 0``, ``steps < 1``, ``restarts < 1``, several restarts without a random
            start, an input outside ``bounds``, a risk that is not one number per row or whose gradient does not reach
            x, or columns that x does not have.
        TypeError: x is not floating-point: integers have no gradient, scale them first.

    Use it to train against small changes of the input, or to measure what such changes do. The input that it finds need
    not be the worst one: for a guarantee against every change, see the certificates. Rows must not depend on each
    other: keep batch normalisation in evaluation mode, as :class:`lossworks.Objective` does during the search.

    Papers: madry2018pgd

    >>> attack = PGD(0.1, steps=3, random_start=False)
    >>> attack(lambda x: x.sum(1), torch.zeros(1, 2))
    tensor([[0.1000, 0.1000]])
    """

    papers = ("madry2018pgd",)
    helps = ("attacks",)
    stochastic = True
    settings = ({}, {"eps": 0.03}, {"norm": "l2", "eps": 0.5})
    modes: ClassVar[tuple[Mapping[str, Any], ...]] = ({"random_start": False}, {"restarts": 2})

    def __init__(
        self,
        eps: float | Tensor = 0.1,
        steps: int = 10,
        step_size: float | Tensor | None = None,
        norm: str = "linf",
        *,
        restarts: int = 1,
        random_start: bool = True,
        bounds: Bounds | None = None,
        columns: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_ball(eps, norm, bounds)
        self.eps, self.norm = eps, norm
        self.generator = check_generator("generator", generator)
        self.steps = check_int("steps", steps, low=1)
        self.step_size = None if step_size is None else check_positive("step_size", step_size)
        self.restarts = check_int("restarts", restarts, low=1)
        self.random_start = check_bool("random_start", random_start)
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts must be 1 without random_start, as all would start alike, got {restarts}")
        self.low, self.high = (-math.inf, math.inf) if bounds is None else bounds
        self.columns = None if columns is None else _columns(columns)

    @property
    def begins_at_input(self) -> bool:  # type: ignore[override]
        """Whether the search starts at the clean input."""
        return not self.random_start

    @property
    def bounds(self) -> Bounds | None:
        """The data's range ``(low, high)``, or None where there is none."""
        plain = not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor)
        return None if plain and (self.low, self.high) == (-math.inf, math.inf) else (self.low, self.high)

    def forward(self, risk: Risk, x: Float[Tensor, "n *features"]) -> Float[Tensor, "n *features"]:
        """The worst input found for each row."""
        x = ordinary(x)
        if self.columns is None:
            return self._search(risk, x)
        check_floating("x", x)
        if x.ndim != 2 or max(self.columns) >= x.shape[1]:
            raise ValueError(f"x must have shape (n, d) with columns up to {max(self.columns)}, got {tuple(x.shape)}")
        columns = torch.tensor(self.columns, device=x.device)

        def whole(part: Tensor) -> Tensor:
            return x.index_copy(1, columns, part)

        return whole(self._search(lambda part: risk(whole(part)), x.index_select(1, columns)))

    def _search(self, risk: Risk, x: Float[Tensor, "n *features"]) -> Float[Tensor, "n *features"]:
        ball = Ball(x, self.eps, self.norm, (self.low, self.high))
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        worst, highest = ball.x, None
        for _ in range(self.restarts):
            changed = ball.x
            if self.random_start:
                highest = _value(risk, ball.x) if highest is None else highest
                changed = ball.start(self.generator)
            for _ in range(self.steps):
                gradient, values = _slope(risk, changed)
                worst, highest = _worse(changed, values, worst, highest)
                changed = ball.project(changed + step * ball.steepest(gradient))
            worst, highest = _worse(changed, _value(risk, changed), worst, highest)
        return worst


class FGSM(PGD):
    r"""Fast gradient sign method (FGSM): one step of length eps along the sign of the risk's gradient.

    .. math::
        x' = \Pi_{[low, high]}\big(x + \varepsilon\, \mathrm{sign}(\nabla_x \ell(f(x), y))\big)

    A row whose risk the step lowers keeps its clean input. It costs one forward and backward pass and one forward pass.

    Args:
        eps: The ball's radius :math:`\varepsilon`, in the input's units, >= 0.
        norm: ``"linf"`` for a step along the gradient's sign, or ``"l2"`` for one along the gradient.
        bounds: The data's range ``(low, high)``, numbers or tensors that broadcast to x; no range by default.

    Shape:
        - x: ``(n, ...)`` floating-point; returns the same shape and dtype, without a graph.

    Raises:
        ValueError: ``eps < 0``, an input outside ``bounds``, or a risk that is not one number per row.
        TypeError: x is not floating-point.

    Use it as the cheapest attack. Training against it alone can teach the model to hide its gradient (catastrophic
    overfitting), so train with :class:`PGD`, or at least measure the result with it.

    Papers: goodfellow2015explaining

    >>> FGSM(0.5)(lambda x: (x**2).sum(1), torch.tensor([[1.0, -2.0]]))
    tensor([[ 1.5000, -2.5000]])
    """

    papers = ("goodfellow2015explaining",)
    stochastic = False
    modes = ()

    def __init__(self, eps: float | Tensor = 0.1, norm: str = "linf", *, bounds: Bounds | None = None) -> None:
        super().__init__(eps, 1, norm=norm, random_start=False, bounds=bounds)


def _columns(columns: Sequence[int]) -> tuple[int, ...]:
    check_sequence("columns", columns)
    if not len(columns) or len(set(columns)) < len(columns):
        raise ValueError(f"columns must be one or more different columns, got {shown(columns)}")
    return tuple(check_int("columns", column, low=0) for column in columns)


def _worse(changed: Tensor, values: Tensor, worst: Tensor, highest: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each row, whichever of the two inputs has the higher risk, and that risk; NaN never counts as higher."""
    if highest is None:
        return changed, values
    higher = values > highest
    rows = higher.reshape(len(higher), *(1 for _ in changed.shape[1:]))
    return torch.where(rows, changed, worst), torch.where(higher, values, highest)


def _value(risk: Risk, x: Tensor) -> Float[Tensor, " n"]:
    with torch.no_grad():
        return _one_a_row(risk(x), x).detach()


def _slope(risk: Risk, x: Tensor) -> tuple[Float[Tensor, "n *features"], Float[Tensor, " n"]]:
    """Each row's gradient and risk. Nothing is recorded for the gradient of the model's parameters."""

    def summed(inputs: Tensor) -> tuple[Tensor, Tensor]:
        values = _one_a_row(risk(inputs), inputs)
        return values.sum(), values

    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        with torch.no_grad():  # func.grad still records its own graph, but no outer one
            gradient, values = torch.func.grad(summed, has_aux=True)(x)
        return gradient.detach(), values.detach()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = ordinary(x).detach().requires_grad_()
        try:
            total, values = summed(leaf)
        except RuntimeError as error:
            if not said_of_inference(error):
                raise
            with OrdinaryTensors():
                total, values = summed(leaf)
        found = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    if found is None:
        raise ValueError("risk must give numbers whose gradient reaches x, what it gave has none")
    return found, values.detach()


def _one_a_row(values: Tensor, x: Tensor, by: str = "risk") -> Tensor:
    check_tensor(f"what {by} gives", values)
    if values.shape != x.shape[:1]:
        raise ValueError(f"{by} must give one number a row, shape {tuple(x.shape[:1])}, it gave {tuple(values.shape)}")
    return values
