"""Sharpness-aware training without a second gradient (SAF): keep outputs near those of some epochs ago."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

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
from lossworks.losses._rows import softmax_and_surprise
from lossworks.roles import Loss, RowForm, cite

__all__ = ["TrajectoryLoss", "trajectory_divergence"]

STORED = (torch.float32, torch.bfloat16, torch.float16)


@cite("du2022saf", helps=("overfitting",))
def trajectory_divergence(
    output: Float[Tensor, "n classes"], past: Float[Tensor, "n classes"], tau: float | Tensor = 5.0
) -> Float[Tensor, " n"]:
    r"""The divergence of a model's outputs from its own, or its moving average's, earlier outputs for the same rows.

    .. math::
        d_i = \tau^2\, \mathrm{KL}\big(\mathrm{softmax}(z_i^{past} / \tau) \,\|\, \mathrm{softmax}(z_i / \tau)\big)

    Its gradient in z is :math:`\tau\, (\mathrm{softmax}(z / \tau) - \mathrm{softmax}(z^{past} / \tau))`. The factor
    :math:`\tau^2` keeps the gradient from vanishing as :math:`\tau` grows; d then tends to half the squared distance of
    the centred logits, divided by C.

    The published code takes the logarithm of a softmax, which is infinite where the softmax rounds to 0; this function
    takes a log-softmax.

    Args:
        output: Logits.
        past: The earlier logits; no gradient goes through them.
        tau: The temperature, in logit units, > 0.

    Shape:
        - output and past: ``(n, C)``. Returns ``(n,)``, >= 0 up to rounding; half precision is computed in float32.

    Raises:
        ValueError: ``tau <= 0``, shapes that don't match or are not ``(n, C)``.
        TypeError: logits that are not floating-point.

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
    p = before.exp()
    divergence = (p * torch.where(p > 0, before - now, 0)).sum(dim=1)
    return tau * (tau * divergence)  # tau squared alone could overflow


class TrajectoryLoss(Loss):
    r"""SAF: cross-entropy plus a price on how far each training row's outputs have moved since some epochs ago.

    .. math::
        \ell_i(z, y) = \mathrm{CE}(z, y) + \lambda \tau^2\, \mathrm{KL}\big(
            \mathrm{softmax}(z_i^{(v - E)} / \tau) \,\|\, \mathrm{softmax}(z / \tau)\big)

    Here :math:`z_i^{(v - E)}` are the model's outputs for row i, E visits before this one. In a small step a loss falls
    by the squared norm of its gradient times the step's length. The price holds back this fall, and so keeps that norm
    small, for which sharpness-aware minimisation (:class:`lossworks.optim.SAM`) needs a second gradient.

    Epochs are counted by each row's own visits in ``train()`` mode; a row that was visited fewer than E times has no
    price. In ``eval()`` mode a row is compared with the same outputs as its next visit would be, and nothing is
    remembered. Ignored rows are not remembered. If a row is in a batch twice, the mean of its two outputs is
    remembered, also where the two are on different ranks of a ``process_group``; when the batch is split into
    micro-batches, :meth:`lossworks.Objective.micro_batches` ensures the same.

    Args:
        num_samples: N, the number of training rows.
        num_classes: C, the number of classes, >= 2.
        lam: The price :math:`\lambda`, >= 0; 0 is cross-entropy.
        tau: The temperature, in logit units, > 0.
        lag_epochs: E, in [1, 1000]: a row is compared with its outputs of E visits before.
        start: The fraction of the training, told by :meth:`set_progress`, up to which there is no price, in [0, 1). If
            :meth:`set_progress` is never called, the fraction is 1, so that rows have a price as soon as they were
            visited E times, unless ``end`` is below 1.
        end: The fraction of the training after which there is no price any more, in (``start``, 1].
        storage_dtype: The dtype in which outputs are remembered: float32, or bfloat16 or float16, which are less exact
            and take half the memory.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Buffers:
        history: ``(N (E + 1), C)``, the outputs of each row's last E + 1 visits, less the largest of each visit. Those
            of row i at its visit v are in row ``i (E + 1) + v % (E + 1)``.
        visits: ``(N,)`` int64, how often each row was visited.
        progress: ``()``, the fraction last told to :meth:`set_progress`, 1 before the first call.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64; index:
          in the target's shape, int64 in ``[0, N)``, or -1 for a row that is not remembered.
        - returns ``()``, or the target's shape with ``reduction="none"``; >= 0 up to rounding.

    Raises:
        ValueError: a hyperparameter out of its range, ``index`` missing, of another shape or out of range, shapes that
            don't match, a class outside ``[0, C)``.
        TypeError: a ``storage_dtype`` that is not one of these.
        RuntimeError: the gradients of the fused form are asked for after the rows have been visited again.

    In the fused form, a batch that has a row twice is held in memory as a whole until it has been read. A forward pass
    that is run again for its gradients (``torch.utils.checkpoint``) counts as another visit.

    Use it where a network fits all its training rows, those with wrong labels included, and a second gradient costs too
    much. It stores (E + 1) N C numbers: with many rows and classes take
    :class:`lossworks.objectives.EMATrajectoryObjective`.

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
    memories: ClassVar[Mapping[str, str]] = {"history": "mean", "visits": "amax"}
    settings = ({"lam": 0.3}, {"lam": 0.8, "lag_epochs": 1})
    history: Tensor
    visits: Tensor
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
        self.history = torch.zeros(num_samples * (lag_epochs + 1), num_classes, dtype=storage_dtype)
        self.visits = torch.zeros(num_samples, dtype=torch.int64)
        self.progress = torch.ones(())

    def set_progress(self, fraction: float) -> None:
        """Tell the loss the fraction of the training that is done; the price applies above ``start``, up to ``end``."""
        self.progress = torch.full_like(self.progress, check_between("fraction", fraction, 0, 1))

    def per_sample(  # type: ignore[override]  # a loss with a memory takes the rows' numbers too
        self,
        output: Float[Tensor, "n classes"],
        target: Int[Tensor, " n"],
        index: Int[Tensor, " n"],
        memory: Int[Tensor, "n 3"] | None = None,
    ) -> Float[Tensor, " n"]:
        """The loss of each row; a row whose index is -1 is not remembered.

        With a ``memory``, as :meth:`recall` returns it, rows are compared with the outputs there, and nothing is
        remembered.
        """
        check_classes(output, target)
        if memory is None:
            memory = self.recall(output, target, index)
            if self.training:
                self.keep(index, memory)
        past, counts = self._past(memory, output.dtype)
        past = torch.where(counts[:, None], past, output.detach())
        price = torch.where(counts, trajectory_divergence(output, past, self.tau), 0)
        return cross_entropy(output, target, reduction="none") + self.lam * price

    def closed_form(self, num_classes: int) -> RowForm:
        """See :class:`lossworks.roles.RowForm`, at the rows' remembered outputs."""
        return RowForm(self._value_and_gradient, remembers=True)

    def _value_and_gradient(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], memory: Int[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        gradient, value = softmax_and_surprise(output, target)
        gradient.scatter_add_(1, target[:, None], -torch.ones_like(value)[:, None])
        past, counts = self._past(memory, output.dtype)
        gap = output - output.amax(dim=1, keepdim=True)
        now, before = (z.div(self.tau).softmax(dim=1) for z in (gap, past))
        # The largest probability is exp(0) over the sum, so the sums need no pass of their own.
        sums = before.amax(dim=1).log() - now.amax(dim=1).log()
        top, moved = past.amax(dim=1), past.sub_(gap)
        far = torch.linalg.vecdot(before, moved)
        if not bool(far.isfinite().all()):  # a class whose probability is 0 now, as it was before
            far = torch.linalg.vecdot(before, moved.masked_fill_(before == 0, 0))
        price = self.lam * torch.where(counts, self.tau * (self.tau * ((far - top) / self.tau + sums)), 0)
        slope = counts.to(output.dtype) * (self.lam * self.tau)
        return value + price, gradient.add_(now.sub_(before).mul_(slope[:, None]))

    @torch.no_grad()
    def recall(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], index: Int[Tensor, " n"]
    ) -> Int[Tensor, "n 3"]:
        """Each row's place in the history (-1 where it has no price), its visits, and whether this is another visit.

        The place is that of the outputs with which the row is compared. In ``train()`` mode the new outputs are
        written to another place, which nothing reads before :meth:`keep`.
        """
        if output.shape[1] != self.num_classes:
            raise ValueError(f"output must have shape (n, {self.num_classes}), got {tuple(output.shape)}")
        check_rows("index", index, self.num_samples, low=-1)
        visits = self.visits[index.clamp(min=0)]
        ring = self.lag_epochs + 1
        counts = (index >= 0) & (visits >= self.lag_epochs) & (self.start < self.progress) & (self.progress <= self.end)
        held_to = torch.where(counts, index * ring + (visits + 1) % ring, -1)
        if not self.training:
            return torch.stack([held_to, visits, torch.zeros_like(visits)], dim=1)
        top = output.amax(dim=1)
        low = max(torch.finfo(dtype).min for dtype in (self.history.dtype, output.dtype))
        newest = (output - top[:, None]).clamp(min=low)
        self.remember("history", torch.where(index >= 0, index * ring + visits % ring, -1), newest)
        return torch.stack([held_to, visits, top.isfinite()], dim=1)

    def keep(self, index: Int[Tensor, " n"], memory: Int[Tensor, "n 3"]) -> None:
        """Count one more visit of these rows, except for those whose largest output is not finite."""
        _, visits, counts = memory.unbind(dim=1)
        self.remember("visits", index, visits + counts)

    def _past(self, memory: Int[Tensor, "n 3"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The outputs with which the rows are compared, and which rows have a price."""
        place, visits, _ = memory.unbind(dim=1)
        counts, place = place >= 0, place.clamp(min=0)
        now = self.visits[place // (self.lag_epochs + 1)]
        if readable(now) and bool((counts & (now > visits + 1)).any()):
            raise RuntimeError(
                "TrajectoryLoss has seen these rows again since, and no longer holds the outputs that the backward "
                "pass of the fused form needs: call backward before the next step"
            )
        return self.history[place].to(dtype), counts
