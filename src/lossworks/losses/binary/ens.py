"""Ensembles of losses: each step trains with a freshly drawn convex, calibrated loss of the margin."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import (
    check_classes,
    check_finite,
    check_floating,
    check_generator,
    check_int,
    check_same_shape,
)
from lossworks.roles import Loss, cite

_LEAST_SLOPE = 1e-6


@cite("dai2025ensloss")
def pair_derivatives(draws: Float[Tensor, "n *rest"], margins: Float[Tensor, "n *rest"]) -> Float[Tensor, "n *rest"]:
    """Hand the draws out so that they rise with the margins, which makes them the derivative of some convex loss.

    Draws that are a convex loss's derivatives at these margins, in any order, come back as that loss's derivative.

    Args:
        draws: Derivatives, in any order along the first dimension.
        margins: The margins; each further dimension is paired by itself.

    Raises:
        ValueError: shapes that differ.

    Papers: dai2025ensloss

    >>> pair_derivatives(torch.tensor([-0.1, -0.9, -0.5]), torch.tensor([0.0, 2.0, -1.0]))
    tensor([-0.5000, -0.1000, -0.9000])
    """
    check_floating("margins", margins)
    check_floating("draws", draws)
    check_same_shape(margins, draws, names=("margins", "draws"))
    _check_rows(margins)
    # Numbers that lie side by side sort in half the time.
    order = margins.movedim(0, -1).contiguous().argsort(dim=-1, stable=True)
    rising = draws.movedim(0, -1).contiguous().sort(dim=-1).values
    return torch.zeros_like(rising).scatter(-1, order, rising).movedim(-1, 0)


@cite("dai2025ensloss", helps=("overfitting",))
@torch.no_grad()
def sample_calibrated_derivatives(
    margins: Float[Tensor, "n *rest"], lam: float | Tensor = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n *rest"]:
    r"""Draw a convex, classification-calibrated loss and give its derivative at each margin.

    .. math::
        g_i = -\min\big(1, \mathrm{BoxCox}^{-1}_\lambda(u_i)\big), \quad u_i \sim N(0, 1), \quad
        \mathrm{BoxCox}^{-1}_\lambda(u) = (1 + \lambda u)_+^{1/\lambda}, \quad \mathrm{BoxCox}^{-1}_0(u) = e^u

    sorted to rise with the margin, divided by the margin above 1 so that the loss grows no faster than a logarithm
    falls, less :math:`10^{-6}` so that none is 0.

    Args:
        margins: Positive where the score has the right sign; each dimension but the first is a problem of its own.
        lam: Of the Box-Cox transformation.
        generator: Where the draws come from; torch's own if None.

    Returns:
        Derivatives, below 0 and without a gradient.

    Raises:
        TypeError: margins are not floating-point.
        ValueError: ``lam`` is not finite.

    Papers: dai2025ensloss

    >>> sample_calibrated_derivatives(torch.tensor([-1.0, 0.5, 3.0])) < 0
    tensor([True, True, True])
    """
    check_floating("margins", margins)
    _check_rows(margins)
    check_finite("lam", lam)
    check_generator("generator", generator)
    normal = torch.randn(margins.shape, generator=generator, dtype=margins.dtype, device=margins.device)
    power = torch.as_tensor(lam, dtype=margins.dtype, device=margins.device)
    at_zero = power == 0
    log_draw = torch.where(
        at_zero,
        normal,
        torch.log1p((power * normal).clamp(min=-1)) / torch.where(at_zero, torch.ones_like(power), power),
    )
    paired = pair_derivatives(-log_draw.clamp(max=0).exp(), margins)
    return paired / margins.clamp(min=1) - _LEAST_SLOPE


def _check_rows(margins: Tensor) -> None:
    if margins.ndim < 1:
        raise ValueError("margins must have shape (n, ...), got a 0-d tensor")


class _DrawnLoss(Loss):
    """What the two EnsLosses share: the hyperparameters and the draw."""

    papers = ("dai2025ensloss",)
    helps = ("overfitting",)
    couples_batch = True
    stochastic = True
    surrogate_gradient = True
    settings = ({"boxcox_lambda": 0.0}, {"boxcox_lambda": 1.0}, {"boxcox_lambda": -1.0})

    def __init__(
        self,
        boxcox_lambda: float | Tensor = 0.0,
        resample_lambda_every: int | None = None,
        generator: torch.Generator | None = None,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.boxcox_lambda = check_finite("boxcox_lambda", boxcox_lambda)
        self.resample_lambda_every = resample_lambda_every
        self.generator = check_generator("generator", generator)
        if resample_lambda_every is not None:
            check_int("resample_lambda_every", resample_lambda_every, low=1)
            self.drawn_lambda = torch.as_tensor(boxcox_lambda, dtype=torch.float32).detach().clone()
            check_finite("boxcox_lambda", self.drawn_lambda)
            self.calls = torch.zeros((), dtype=torch.int64)

    def surrogate(self, margins: Float[Tensor, "n *rest"]) -> Float[Tensor, "n *rest"]:
        """Each margin times its drawn derivative, so that the derivative is the gradient."""
        return sample_calibrated_derivatives(margins.detach(), self._lambda(), self.generator) * margins

    def _lambda(self) -> float | Tensor:
        if self.resample_lambda_every is None:
            return self.boxcox_lambda
        if self.training:
            drawn = 2 * torch.rand((), generator=self.generator, device=self.drawn_lambda.device) - 1
            due = (self.calls > 0) & (self.calls % self.resample_lambda_every == 0)
            self.drawn_lambda.copy_(torch.where(due, drawn, self.drawn_lambda))
            self.calls.add_(1)
        return self.drawn_lambda


class EnsLoss(_DrawnLoss):
    r"""A different loss at every step, drawn from the convex and calibrated ones, so that none is overfitted to.

    .. math::
        \ell_i = g_i m_i, \qquad m_i = (2 y_i - 1) z_i, \qquad \frac{\partial \ell_i}{\partial z_i} = g_i (2 y_i - 1)

    where :math:`g_i < 0`, rising with the margin, are drawn anew in each call: :func:`sample_calibrated_derivatives`.
    Training needs a loss's derivative only; the value is not that of a loss, so don't stop early by it.

    The derivatives are paired with the margins over the batch, so the loss is by definition another one when the batch
    is split; each split is trained on a calibrated loss all the same. With ``process_group=``, and with
    :meth:`lossworks.Objective.micro_batches`, the split is paired as one batch; ranks need their generators in one
    state. Margins that are equal but for rounding may be paired either way.

    Args:
        boxcox_lambda: How the derivatives are distributed: 0 log-normal, 1 normal, both capped at 1.
        resample_lambda_every: Draw another ``boxcox_lambda`` from U(-1, 1) every so many calls in ``train()`` mode;
            None never.
        generator: Where the draws come from, with its state in ``state_dict()``; torch's own if None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Buffers:
        drawn_lambda, calls: ``()``, with ``resample_lambda_every`` only: the one in use, and how many calls were made.

    Shape:
        - output: scores ``(n,)`` or any shape; target: 0 or 1, in the output's shape.
        - returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: ``boxcox_lambda`` is not finite, ``resample_lambda_every < 1``, shapes that don't match, a target
            that is neither 0 nor 1.

    Use it when a large network overfits a binary task and training is long; not when the scores must be probabilities.
    It sorts the batch's margins, which at millions of them costs some forty times binary cross-entropy.

    Papers: dai2025ensloss

    >>> loss = EnsLoss(generator=torch.Generator().manual_seed(0))
    >>> loss(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 1.0])).isfinite()
    tensor(True)
    """

    kind = "binary"

    def __init__(
        self,
        boxcox_lambda: float | Tensor = 0.0,
        resample_lambda_every: int | None = None,
        generator: torch.Generator | None = None,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(boxcox_lambda, resample_lambda_every, generator, reduction=reduction)

    def per_sample(self, output: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One value a row."""
        return self.surrogate((2 * target - 1) * output)


class OneVsRestEnsLoss(_DrawnLoss):
    r"""EnsLoss for classes: each class against the rest is a binary task with a drawn loss of its own; they are summed.

    .. math::
        \ell_i = \sum_k g_{ik} m_{ik}, \qquad m_{ik} = z_{ik} \text{ if } k = y_i \text{ else } -z_{ik}

    Each class's derivatives are paired with its margins over the batch, so the loss is by definition another one when
    the batch is split. With ``process_group=``, and with :meth:`lossworks.Objective.micro_batches`, the split is paired
    as one batch; ranks need their generators in one state. Margins that are equal but for rounding may be paired either
    way. The paper treats binary tasks; this is the plain extension.

    Args:
        boxcox_lambda: How the derivatives are distributed: 0 log-normal, 1 normal, both capped at 1.
        resample_lambda_every: Draw another ``boxcox_lambda`` from U(-1, 1) every so many calls in ``train()`` mode;
            None never.
        generator: Where the draws come from, with its state in ``state_dict()``; torch's own if None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows have loss 0; they still take draws.

    Buffers:
        drawn_lambda, calls: ``()``, with ``resample_lambda_every`` only: the one in use, and how many calls were made.

    Shape:
        - output: scores ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: ``boxcox_lambda`` is not finite, ``resample_lambda_every < 1``, shapes that don't match, a class
            outside ``[0, C)``.

    Use it when a large network overfits and training is long; not when the scores must be probabilities, nor with so
    many classes that a batch has few rows of each. It sorts the margins of each class, which with a thousand of them
    costs some seventy times cross-entropy.

    Papers: dai2025ensloss

    >>> loss = OneVsRestEnsLoss(generator=torch.Generator().manual_seed(0))
    >>> loss(torch.tensor([[-1.0, 2.0], [0.5, 0.0]]), torch.tensor([1, 0])).isfinite()
    tensor(True)
    """

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """One value a row."""
        check_classes(output, target)
        is_target = torch.arange(output.shape[1], device=output.device) == target[:, None]
        return self.surrogate(torch.where(is_target, output, -output)).sum(dim=1)
