"""Sharpness-aware training without a second gradient: stay near what the model said some epochs ago."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from lossworks.checks import (
    check_between,
    check_classes,
    check_floating,
    check_int,
    check_positive,
    check_rows,
    check_same_shape,
    readable,
    shown,
)
from lossworks.roles import Loss, cite

__all__ = ["TrajectoryLoss", "trajectory_divergence"]

STORED = (torch.float32, torch.bfloat16, torch.float16)
UNSEEN = 1.0
"""What stands in the memory where nothing was remembered: what is remembered is never above 0."""


@cite("du2022saf", helps=("overfitting",))
def trajectory_divergence(
    output: Float[Tensor, "n classes"], past: Float[Tensor, "n classes"], tau: float | Tensor = 5.0
) -> Float[Tensor, " n"]:
    r"""How far a model's outputs are from what it, or its average, said of the same rows before.

    .. math::
        d_i = \tau^2\, \mathrm{KL}\big(\mathrm{softmax}(z_i^{past} / \tau) \,\|\, \mathrm{softmax}(z_i / \tau)\big)

    Its gradient in z is :math:`\tau\, (\mathrm{softmax}(z / \tau) - \mathrm{softmax}(z^{past} / \tau))`. The factor
    keeps its size as :math:`\tau` grows, where it goes to half the squared distance of the centred logits over C.

    The published code takes the logarithm of a softmax, which is infinite where the softmax rounds to 0; this takes a
    log-softmax.

    Args:
        output: Logits.
        past: The logits before; no gradient goes through them.
        tau: The temperature, in logit units, > 0.

    Shape:
        - output and past: ``(n, C)``. Returns ``(n,)``, >= 0; half precision is computed in float32.

    Raises:
        ValueError: ``tau <= 0``, shapes that don't match or are not ``(n, C)``.
        TypeError: not floating-point.

    Papers: du2022saf

    >>> trajectory_divergence(torch.zeros(2, 3), torch.tensor([[4.0, 4.0, 4.0], [9.0, 0.0, 0.0]])) > 0
    tensor([False,  True])
    """
    check_positive("tau", tau)
    check_floating("output", output)
    check_floating("past", past)
    check_same_shape(output, past, names=("output", "past"))
    if output.ndim != 2:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    output = output.float() if output.element_size() == 2 else output
    now, before = (z.div(tau).log_softmax(dim=1) for z in (output, past.detach().to(output.dtype)))
    divergence = kl_div(now, before, reduction="none", log_target=True).sum(dim=1)
    return tau * (tau * divergence)  # where tau squared would be too large a number


class TrajectoryLoss(Loss):
    r"""Cross-entropy, and a price on how far each training row's output has moved since some epochs ago (SAF).

    .. math::
        \ell_i(z, y) = \mathrm{CE}(z, y) + \lambda \tau^2\, \mathrm{KL}\big(
            \mathrm{softmax}(z_i^{(v - E)} / \tau) \,\|\, \mathrm{softmax}(z / \tau)\big)

    with :math:`z_i^{(v - E)}` what the model said of row i at its visit E before this one. In small steps a loss falls
    by the squared norm of its gradient times their length; this holds the fall back, and so that norm, which
    sharpness-aware minimisation (:class:`lossworks.optim.SAM`) prices by a second gradient.

    Epochs are counted by each row's own visits in ``train()`` mode; before E of them a row has no price. In ``eval()``
    mode the row's remembered outputs are used and none changes. Ignored rows are not remembered. A row that is in a
    batch twice is remembered by the mean of both, on whichever ranks of a ``process_group`` they are; where the batch
    is split into micro-batches, :meth:`lossworks.Objective.micro_batches` sees to it.

    Args:
        num_samples: N, the rows of the training data.
        num_classes: C, >= 2.
        lam: :math:`\lambda`, >= 0; 0 is cross-entropy.
        tau: The temperature, in logit units, > 0.
        lag_epochs: E, >= 1.
        start: The fraction of the training up to which there is no price, in [0, 1), told by :meth:`set_progress`. A
            loss that is never told has it from the first row that was seen E times.
        end: The fraction after which there is none any more, in (``start``, 1].
        storage_dtype: In what the outputs are remembered: float32, or bfloat16 or float16 for half the memory, less
            exact.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Buffers:
        history: ``(N, E + 1, C)``, each row's last outputs less their largest, the newest last; 1 where there is none.
        progress: ``()``.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64; index:
          in the target's shape, int64 in ``[0, N)``, or -1 for a row that is not remembered.
        - returns ``()``, or the target's shape with ``reduction="none"``; >= 0.

    Raises:
        ValueError: a hyperparameter out of its range, ``index`` missing, of another shape or out of range, shapes that
            don't match, a class outside ``[0, C)``.
        TypeError: another ``storage_dtype``.

    Use it where a network fits its training rows, labels wrong among them, and a second gradient is too dear. It holds
    (E + 1) N C numbers: with many rows and classes take :class:`lossworks.robust.EMATrajectoryLoss`.

    Papers: du2022saf

    >>> loss = TrajectoryLoss(num_samples=100, num_classes=3, lag_epochs=1)
    >>> target, index = torch.tensor([0]), torch.tensor([7])
    >>> first = loss(torch.tensor([[2.0, 0.0, -1.0]]), target, index=index)
    >>> loss(torch.tensor([[1.0, 0.0, 2.0]]), target, index=index) - 1.0 > first
    tensor(True)
    """

    papers = ("du2022saf",)
    helps = ("overfitting", "noisy labels")
    rowwise = True
    probabilistic = True
    needs = ("num_samples", "num_classes")
    needs_index = True
    memories: ClassVar[Mapping[str, str]] = {"history": "mean"}
    settings = ({"lam": 0.3}, {"lam": 0.8, "lag_epochs": 1})
    history: Tensor
    progress: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        lam: float | Tensor = 0.3,
        tau: float | Tensor = 5.0,
        lag_epochs: int = 3,
        start: float | Tensor = 0.05,
        end: float | Tensor = 1.0,
        storage_dtype: torch.dtype = torch.float32,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.num_samples = check_int("num_samples", num_samples, low=1, high=2**31 - 1)
        self.num_classes = check_int("num_classes", num_classes, low=2, high=2**31 - 1)
        self.lam = check_positive("lam", lam, allow_zero=True)
        self.tau = check_positive("tau", tau)
        self.lag_epochs = check_int("lag_epochs", lag_epochs, low=1, high=1000)
        self.start = check_between("start", start, 0, 1, open_high=True)
        self.end = check_between("end", end, 0, 1, open_low=True)
        window = torch.as_tensor(end - start).detach()
        if readable(window) and not float(window) > 0:
            raise ValueError(f"end must be above start, got {float(end):g} and {float(start):g}")
        if not isinstance(storage_dtype, torch.dtype) or storage_dtype not in STORED:
            raise TypeError(f"storage_dtype must be one of {', '.join(map(str, STORED))}, got {shown(storage_dtype)}")
        self.storage_dtype = storage_dtype
        self.history = torch.full((num_samples, lag_epochs + 1, num_classes), UNSEEN, dtype=storage_dtype)
        self.progress = torch.ones(())

    def set_progress(self, fraction: float) -> None:
        """The price counts where ``fraction`` is above ``start`` and not above ``end``."""
        self.progress = torch.full_like(self.progress, check_between("fraction", fraction, 0, 1))

    def per_sample(  # type: ignore[override]  # rows with a memory take their number
        self,
        output: Float[Tensor, "n classes"],
        target: Int[Tensor, " n"],
        index: Int[Tensor, " n"],
        memory: Float[Tensor, "n past classes"] | None = None,
    ) -> Float[Tensor, " n"]:
        """One value a row; an index of -1 is a row that is not remembered.

        Given a ``memory``, as of :meth:`recall`, the rows' outputs are those, and none is remembered.
        """
        check_classes(output, target)
        if memory is None:
            memory = self.recall(output, target, index)
            if self.training:
                self.remember("history", index, memory)
        past = memory[:, 0].to(output.dtype)
        counts = (index >= 0) & (past[:, 0] <= 0) & (self.start < self.progress) & (self.progress <= self.end)
        past = torch.where(counts[:, None], past, output.detach())
        price = torch.where(counts, trajectory_divergence(output, past, self.tau), 0)
        return cross_entropy(output, target, reduction="none") + self.lam * price

    @torch.no_grad()
    def recall(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n past classes"]:
        """The rows' last outputs, with these as the newest in ``train()`` mode; changes nothing."""
        if output.shape[1] != self.num_classes:
            raise ValueError(f"output must have shape (n, {self.num_classes}), got {tuple(output.shape)}")
        check_rows("index", index, self.num_samples, low=-1)
        held = self.history[index.clamp(min=0)]
        if not self.training:
            return held
        newest = output.detach() - output.detach().amax(dim=1, keepdim=True)
        newest = newest.clamp(min=torch.finfo(held.dtype).min).to(held.dtype)
        return torch.cat([held[:, 1:], newest[:, None]], dim=1)
