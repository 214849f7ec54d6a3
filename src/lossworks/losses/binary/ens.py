"""EnsLoss, an ensemble of losses: each step trains with a newly drawn convex, calibrated loss of the margin."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import (
    check_classes,
    check_finite,
    check_floating,
    check_generator,
    check_int,
    check_same_shape,
    readable,
)
from lossworks.roles import BINARY, Loss, cite

_LEAST_SLOPE = 1e-6
_ROUNDINGS = 32
"""How many roundings two margins may be apart and still be tied: of their own size, or of the middle half's width."""
_SORTED = (torch.float32, torch.float64, torch.int64)
"""The dtypes that numpy sorts."""


@cite("dai2025ensloss")
def pair_derivatives(draws: Float[Tensor, "n *rest"], margins: Float[Tensor, "n *rest"]) -> Float[Tensor, "n *rest"]:
    """Assign draws to margins in rising order, which makes them the derivatives of some convex loss at these margins.

    If the draws are the derivatives of a convex loss at these margins, in any order, each margin gets its own
    derivative back. Margins that differ by no more than rounding share the mean of their draws, so that neither the
    order of the rows nor the rounding of the model decides which of them gets which.

    Args:
        draws: Derivatives, in any order along the first dimension.
        margins: The margins, in the draws' shape. Each position in the further dimensions is paired on its own.

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
    # Numbers that are next to each other in memory sort in half the time.
    last = margins.detach().movedim(0, -1).contiguous()
    order = _order(last)
    rising = _shared(last.gather(-1, order), _sorted(draws.movedim(0, -1).contiguous()))
    return torch.zeros_like(rising).scatter(-1, order, rising).movedim(-1, 0)


def _shared(margins: Float[Tensor, "*rest n"], rising: Float[Tensor, "*rest n"]) -> Float[Tensor, "*rest n"]:
    """The sorted draws, with their mean where the sorted margins are tied."""
    rows = margins.shape[-1]
    if rows < 2:
        return rising
    size = torch.maximum(margins[..., 1:].abs(), margins[..., :-1].abs())
    usual = margins[..., rows * 3 // 4, None] - margins[..., rows // 4, None]
    tolerance = _ROUNDINGS * torch.finfo(margins.dtype).eps * torch.maximum(size, usual)
    gap = margins.diff(dim=-1)
    tied = (gap <= tolerance) & gap.isfinite() | (margins[..., 1:] == margins[..., :-1])
    group = nn.functional.pad((~tied).long().cumsum(dim=-1), (1, 0))
    sums = torch.zeros_like(rising).scatter_add(-1, group, rising)
    counts = torch.zeros_like(rising).scatter_add(-1, group, torch.ones_like(rising))
    means = sums.gather(-1, group) / counts.gather(-1, group)
    return torch.where(counts.gather(-1, group) > 1, means, rising)


@cite("dai2025ensloss", helps=("overfitting",))
@torch.no_grad()
def sample_calibrated_derivatives(
    margins: Float[Tensor, "n *rest"], lam: float | Tensor = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n *rest"]:
    r"""Draw a random convex, classification-calibrated loss and return its derivative at each margin.

    .. math::
        g_i = -\min\big(1, \mathrm{BoxCox}^{-1}_\lambda(u_i)\big), \quad u_i \sim N(0, 1), \quad
        \mathrm{BoxCox}^{-1}_\lambda(u) = (1 + \lambda u)_+^{1/\lambda}, \quad \mathrm{BoxCox}^{-1}_0(u) = e^u

    The :math:`g_i` are sorted to rise with the margin. Where the margin is above 1 they are divided by it, so that the
    loss falls there no faster than a negative logarithm. Last, :math:`10^{-6}` is subtracted, so that none is 0.

    Args:
        margins: ``(n, ...)``, positive where the score has the right sign. Each position in the dimensions after the
            first is a problem of its own.
        lam: The parameter :math:`\lambda` of the Box-Cox transformation, any finite number.
        generator: The random generator; torch's global one if None.

    Returns:
        The derivatives, in the margins' shape, below 0 and without a gradient.

    Raises:
        TypeError: margins that are not floating-point.
        ValueError: ``lam`` that is not finite.

    Papers: dai2025ensloss

    >>> sample_calibrated_derivatives(torch.tensor([-1.0, 0.5, 3.0])) < 0
    tensor([True, True, True])
    """
    check_floating("margins", margins)
    _check_rows(margins)
    check_finite("lam", lam)
    check_generator("generator", generator)
    normal = torch.randn(margins.shape, generator=generator, dtype=margins.dtype, device=margins.device)
    paired = pair_derivatives(-_log_draw(normal, lam).clamp(max=0).exp(), margins)
    return paired / margins.clamp(min=1) - _LEAST_SLOPE


def _log_draw(normal: Tensor, lam: float | Tensor) -> Tensor:
    if not isinstance(lam, Tensor) and abs(lam) < torch.finfo(normal.dtype).tiny:
        return normal
    power = torch.as_tensor(lam, dtype=normal.dtype, device=normal.device)
    at_zero = power == 0
    transformed = torch.log1p((power * normal).clamp(min=-1)) / torch.where(at_zero, torch.ones_like(power), power)
    return torch.where(at_zero, normal, transformed)


def _sorted(numbers: Tensor) -> Tensor:
    """The numbers in rising order along the last axis; numpy sorts them many times as fast as torch."""
    if numbers.device.type == "cpu" and readable(numbers) and not numbers.requires_grad and numbers.dtype in _SORTED:
        return torch.from_numpy(np.sort(numbers.numpy(), axis=-1))
    return numbers.sort(dim=-1).values


def _order(numbers: Float[Tensor, "*rest n"]) -> Int[Tensor, "*rest n"]:
    """The places of the numbers in rising order along the last axis; of equal ones the first comes first.

    A float32 number's bits, the lower 31 of them flipped where it is negative, rise with it as an integer. With the
    place below them each number has a key of its own, so that any sort of the keys gives the same order.
    """
    if numbers.dtype != torch.float32 or numbers.device.type != "cpu" or not readable(numbers):
        return numbers.argsort(dim=-1, stable=True)
    bits = (numbers.detach() + 0.0).view(torch.int32)  # -0 + 0 is 0
    keys = (bits ^ ((bits >> 31) & (2**31 - 1))).long() << 32
    return _sorted(keys + torch.arange(numbers.shape[-1])) & (2**32 - 1)


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
        """Each margin times its drawn derivative: a value whose gradient in the margin is that derivative."""
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
    r"""EnsLoss for two classes: each step draws a new convex, calibrated loss, so that training overfits to none.

    .. math::
        \ell_i = g_i m_i, \qquad m_i = (2 y_i - 1) z_i, \qquad \frac{\partial \ell_i}{\partial z_i} = g_i (2 y_i - 1)

    The derivatives :math:`g_i < 0` rise with the margin and are drawn anew in each call, by
    :func:`sample_calibrated_derivatives`. Training needs only the gradient. The value is not that of a loss, so don't
    use it for early stopping.

    The derivatives are paired with the margins of the whole batch, so a batch that is split by hand has another loss,
    though still a calibrated one. With ``process_group=``, and with :meth:`lossworks.Objective.micro_batches`, a split
    batch is paired as a whole; all ranks then need their random generators in the same state.

    Args:
        boxcox_lambda: How the sizes of the derivatives are distributed: 0 is log-normal, 1 normal, both capped at 1.
        resample_lambda_every: After how many calls in ``train()`` mode a new ``boxcox_lambda`` is drawn from U(-1, 1);
            with None it never changes.
        generator: The random generator, whose state is kept in ``state_dict()``; torch's global one if None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Buffers:
        drawn_lambda: ``()``, only with ``resample_lambda_every``: the ``boxcox_lambda`` in use.
        calls: ``()`` int64, only with ``resample_lambda_every``: how many calls were made in ``train()`` mode.

    Shape:
        - output: scores ``(n,)`` or any shape; target: 0 or 1, in the output's shape.
        - returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: ``boxcox_lambda`` not finite, ``resample_lambda_every < 1``, shapes that don't match, a target
            that is neither 0 nor 1.

    Use it when a large network overfits a binary task and training is long; not when the scores must be probabilities.
    It sorts the batch's margins: with millions of them it costs about twenty times as much as binary cross-entropy.

    Papers: dai2025ensloss

    >>> loss = EnsLoss(generator=torch.Generator().manual_seed(0))
    >>> loss(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 1.0])).isfinite()
    tensor(True)
    """

    kind = BINARY

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
        """The loss of each row."""
        return self.surrogate((2 * target - 1) * output)


class OneVsRestEnsLoss(_DrawnLoss):
    r"""EnsLoss for several classes: the sum over the classes of an EnsLoss for that class against the rest.

    .. math::
        \ell_i = \sum_k g_{ik} m_{ik}, \qquad m_{ik} = z_{ik} \text{ if } k = y_i \text{ else } -z_{ik}

    Each class has derivatives of its own, which are paired with its margins over the whole batch, so a batch that is
    split by hand has another loss. With ``process_group=``, and with :meth:`lossworks.Objective.micro_batches`, a split
    batch is paired as a whole; all ranks then need their random generators in the same state. The paper treats binary
    tasks; this is the plain extension to several classes.

    Args:
        boxcox_lambda: How the sizes of the derivatives are distributed: 0 is log-normal, 1 normal, both capped at 1.
        resample_lambda_every: After how many calls in ``train()`` mode a new ``boxcox_lambda`` is drawn from U(-1, 1);
            with None it never changes.
        generator: The random generator, whose state is kept in ``state_dict()``; torch's global one if None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows have loss 0; derivatives are drawn for them all the same.

    Buffers:
        drawn_lambda: ``()``, only with ``resample_lambda_every``: the ``boxcox_lambda`` in use.
        calls: ``()`` int64, only with ``resample_lambda_every``: how many calls were made in ``train()`` mode.

    Shape:
        - output: scores ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: ``boxcox_lambda`` not finite, ``resample_lambda_every < 1``, shapes that don't match, a class
            outside ``[0, C)``.

    Use it when a large network overfits and training is long; not when the scores must be probabilities, nor with so
    many classes that a batch has few rows of each. It sorts the margins of each class: with a thousand classes it costs
    about fifty times as much as cross-entropy.

    Papers: dai2025ensloss

    >>> loss = OneVsRestEnsLoss(generator=torch.Generator().manual_seed(0))
    >>> loss(torch.tensor([[-1.0, 2.0], [0.5, 0.0]]), torch.tensor([1, 0])).isfinite()
    tensor(True)
    """

    masks = False
    reads_offset = True

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        check_classes(output, target)
        is_target = torch.arange(output.shape[1], device=output.device) == target[:, None]
        return self.surrogate(torch.where(is_target, output, -output)).sum(dim=1)
