"""An output layer over very many classes, trained exactly at a cost that does not grow with their number."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lossworks.checks import (
    check_choice,
    check_floating,
    check_ignore_index,
    check_int,
    check_positive,
    check_sample_weight,
    check_tensor,
    readable,
    shown,
)
from lossworks.losses import ZLoss, z_loss_from_statistics
from lossworks.roles import Part, absent_rows, cleared, weighted_reduction

__all__ = ["FactoredSphericalHead"]

REDUCTIONS = ("mean", "sum", "none")
FromStatistics = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""A function from each row's target score, sum of scores, sum of squared scores, and number of classes to its loss."""
_AT_ONCE = 2**24
"""How many numbers of V are processed at once where all of V is needed."""
_DTYPES = (torch.float32, torch.float64)
_INVERTED_EVERY = 64
"""The number of steps between two inversions of U from scratch, which remove the drift of Woodbury's formula."""


class _Pending(NamedTuple):
    """What one backward pass stores for the step, for each row.

    Attributes:
        hidden: The row's input h.
        target: The row's class; ``weights`` is that class's row of W.
        through: Q h.
        slopes: The gradient of the loss in the three statistics.
    """

    hidden: Float[Tensor, "n features"]
    target: Int[Tensor, " n"]
    weights: Float[Tensor, "n features"]
    through: Float[Tensor, "n features"]
    slopes: Float[Tensor, "n 3"]


class FactoredSphericalHead(Part):
    r"""Factored output layer (Vincent et al.): exact SGD over very many classes at a cost independent of their number.

    The layer is :math:`z = W h`, for losses that depend only on :math:`z_y`, :math:`\sum_k z_k` and
    :math:`\sum_k z_k^2`. The weights are stored as :math:`W = V U + \mathbf{1} \omega^\top`, together with
    :math:`Q = W^\top W` and :math:`\bar w = W^\top \mathbf 1`, so that a step of stochastic gradient descent,

    .. math::
        W \leftarrow W \big((1 - \eta \lambda) I - 2 \eta H^\top D_q H\big) - \eta\, \mathbf 1\, (d_s^\top H)
        - \eta \sum_i d_{y_i}\, e_{y_i} h_i^\top,

    with d the gradient of the loss in the three statistics, changes only U, :math:`\omega` and the rows of V for the
    batch's own classes: :math:`O(n d^2)` for n rows, whatever C is. It is exactly that step, not an approximation.

    The only parameters are those of the loss: after ``backward()``, :meth:`step` takes the place of an optimiser's step
    for this layer. Several backward passes before a step add up. Plain SGD (with weight decay) is the only rule for
    which W keeps this form.

    Args:
        in_features: The number of features d, at most 32,768.
        num_classes: The number of classes C, at least 2.
        loss: A :class:`~lossworks.losses.ZLoss`; ``"squared"``, which is
            :math:`\|z - e_y\|^2 = \sum_k z_k^2 - 2 z_y + 1`; or a function of the three statistics ``(n,)`` and C. A
            loss that is a module becomes a part of the head. A Z-loss's own ``reduction`` is not read: :meth:`loss`
            takes one.
        weight_decay: :math:`\lambda`, >= 0.
        largest_condition: The ratio of U's largest to its smallest singular value (bounded by norms) from which U is
            multiplied into V, which costs :math:`O(C d^2)` once; > 1. Rounding errors of V grow by up to this factor.
        ignore_index: The target of rows that are left out; a Z-loss must not name another.
        dtype: The dtype of V and of the outputs, whatever the dtype of ``hidden``: float32 or float64. All else is
            float64. If the head is moved to another dtype (``half()``), V keeps its own.

    Buffers:
        V: ``(C, d)``. U, U_inverse: ``(d, d)``, and omega: ``(d,)``.
        gram, weight_sum: ``(d, d)`` and ``(d,)``, Q and :math:`\bar w`.
        drift: ``()``, the largest entry of :math:`U U^{-1} - I` when it was last checked, every 64 steps.
        steps, folds: ``()``, how many steps were taken, and how often U was multiplied into V.

    Shape:
        - hidden: ``(n, d)``; target: classes ``(n,)``, int64.

    Raises:
        ValueError: sizes below their minimum, shapes that don't match, a class outside ``[0, C)``, a Z-loss with
            another ``ignore_index``.

    Use it when there are hundreds of thousands of classes and a Z-loss or squared loss is good enough; with a few
    thousand classes a plain layer is as fast. It trains with SGD only, on one process.

    Papers: debrebisson2016zloss, vincent2015sparse

    >>> head = FactoredSphericalHead(2, num_classes=5, loss="squared")
    >>> hidden = torch.ones(3, 2, requires_grad=True)
    >>> before = head.loss(hidden, torch.tensor([0, 1, 1]))
    >>> before.backward()
    >>> head.step(lr=0.05)
    >>> head.loss(hidden, torch.tensor([0, 1, 1])) < before
    tensor(True)
    """

    papers = ("debrebisson2016zloss", "vincent2015sparse")
    helps = ("many classes", "top-k")
    settings = ({"in_features": 4, "num_classes": 12},)

    V: Tensor
    U: Tensor
    U_inverse: Tensor
    omega: Tensor
    gram: Tensor
    weight_sum: Tensor
    drift: Tensor
    steps: Tensor
    folds: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: ZLoss | str | FromStatistics = "squared",
        *,
        weight_decay: float = 0.0,
        largest_condition: float = 100.0,
        ignore_index: int = -100,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features = check_int("in_features", in_features, low=1, high=2**15)
        self.num_classes = check_int("num_classes", num_classes, low=2, high=2**31 - 1)
        if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES:
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {shown(dtype)}")
        self.spherical = _known(loss)
        self.weight_decay = check_positive("weight_decay", weight_decay, allow_zero=True)
        self.largest_condition = check_positive("largest_condition", largest_condition)
        if largest_condition <= 1:
            raise ValueError(f"largest_condition must be > 1, got {largest_condition:g}")
        self.ignore_index = check_ignore_index(ignore_index)
        if isinstance(loss, ZLoss) and loss.ignore_index not in (-100, ignore_index):
            raise ValueError(f"ignore_index must be {loss.ignore_index} as the loss's own is, got {ignore_index}")
        bound = 1 / math.sqrt(in_features)
        self.V = torch.empty(num_classes, in_features, dtype=dtype).uniform_(-bound, bound)
        self.U = torch.eye(in_features, dtype=torch.float64)
        self.U_inverse = torch.eye(in_features, dtype=torch.float64)
        self.omega = torch.zeros(in_features, dtype=torch.float64)
        self.gram = torch.empty(in_features, in_features, dtype=torch.float64)
        self.weight_sum = torch.empty(in_features, dtype=torch.float64)
        self.drift = torch.zeros((), dtype=torch.float64)
        self.steps = torch.zeros((), dtype=torch.int64)
        self.folds = torch.zeros((), dtype=torch.int64)
        self._pending: list[_Pending] = []
        self.recompute()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        loss: ZLoss | str | FromStatistics = "squared",
        *,
        weight_decay: float = 0.0,
        largest_condition: float = 100.0,
        ignore_index: int = -100,
    ) -> "FactoredSphericalHead":
        """Make a head equal to this linear layer, whose weights are copied; the layer must have no bias."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        if "bias" in dict(linear.named_parameters()):
            raise ValueError("linear must have no bias: give the hidden features a constant one instead")
        head = cls(
            linear.in_features,
            linear.out_features,
            loss,
            weight_decay=weight_decay,
            largest_condition=largest_condition,
            ignore_index=ignore_index,
            dtype=linear.weight.dtype,
        ).to(linear.weight.device)
        head.V.copy_(linear.weight.detach())
        head.recompute()
        return head

    def to_linear(self) -> nn.Linear:
        """A linear layer with the same weights."""
        linear = nn.Linear(self.in_features, self.num_classes, bias=False, device=self.V.device, dtype=self.V.dtype)
        with torch.no_grad():
            for rows in self._pieces():
                linear.weight[rows] = self._rows(self.V[rows]).to(self.V.dtype)
        return linear

    def forward(self, hidden: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """The scores of all classes, with a gradient in ``hidden``, at the cost of a dense layer."""
        turned, level = self._turned(hidden)
        return turned @ self.V.T + level[:, None]

    @torch.no_grad()
    def topk(self, hidden: Float[Tensor, "n features"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """Each row's k largest scores and their classes, without holding the scores of all classes at once."""
        check_int("k", k, low=1, high=self.num_classes)
        turned, level = self._turned(hidden)
        values, classes = (
            turned.new_empty(len(hidden), 0),
            torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device),
        )
        for rows in self._pieces(max(len(hidden), self.in_features)):
            scores = turned @ self.V[rows].T
            found, where = scores.topk(min(k, scores.shape[1]), dim=1)
            values, classes = torch.cat([values, found], 1), torch.cat([classes, where + rows.start], 1)
            values, order = values.topk(min(k, values.shape[1]), dim=1)
            classes = classes.gather(1, order)
        return values + level[:, None], classes

    def loss(
        self,
        hidden: Float[Tensor, "n features"],
        target: Int[Tensor, " n"],
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
        reduction: str = "mean",
        total: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of these rows, with a gradient in ``hidden``; its backward pass stores the layer's own for a step.

        Args:
            hidden: The layer's input.
            target: The rows' classes.
            sample_weight: One weight per row, >= 0; ``mean`` divides by their sum.
            reduction: ``"mean"``, ``"sum"`` or ``"none"``.
            total: The number that ``mean`` divides by when this batch is a part of a larger one.
        """
        check_choice("reduction", reduction, REDUCTIONS)
        target, kept = self._checked(hidden, target)
        if sample_weight is not None:
            check_sample_weight(sample_weight, target.shape)
            absent = absent_rows(sample_weight, hidden)
            kept = kept if absent is None else kept & ~absent
            target = torch.where(kept, target, 0)
        exact = cleared(hidden.double(), ~kept)
        rows = self._rows(self.V[target])
        statistics, through = _Statistics.apply(exact, rows, self.weight_sum, self.gram)
        if torch.is_grad_enabled():
            if not statistics.requires_grad:
                statistics.requires_grad_()
            made_at, known = int(self.steps), (exact.detach(), target, rows, through)
            statistics.register_hook(lambda slopes: self._keep(made_at, _Pending(*known, slopes.detach())))
        read, loss = (*statistics.unbind(dim=1), self.num_classes), self.spherical
        losses = _z_loss(loss, *read) if isinstance(loss, ZLoss) else loss(*read)
        weights = kept.to(losses.dtype)
        if sample_weight is not None:
            weights = weights * sample_weight.to(losses.dtype)
        losses = torch.where(kept, losses, torch.zeros_like(losses))
        return weighted_reduction(losses, weights, reduction, total).to(self.V.dtype)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step of stochastic gradient descent on W, by what the backward passes since the last step stored.

        Raises:
            ValueError: ``lr < 0``.
        """
        check_positive("lr", lr, allow_zero=True)
        pending, self._pending = self._pending, []
        kept = 1 - lr * self.weight_decay
        none = self.gram[:0]
        pending = pending or [_Pending(none, self.steps.new_empty(0), none, none, none.new_empty(0, 3))]
        hidden, target, weights, through, slopes = (torch.cat(column) for column in zip(*pending, strict=True))
        moving = slopes[:, :2] * lr  # of the target score and of the sum
        own, doubled = moving[:, 0], 2 * lr * slopes[:, 2]
        scaled = doubled[:, None] * hidden  # M = kept - hidden' scaled
        moved, common = moving.T @ hidden
        moved_sum = kept * self.weight_sum - (hidden @ self.weight_sum) @ scaled

        # W' W after the step is less half and its transpose: everything that changes in W is in the rows' hidden.
        bent, drawn = doubled[:, None] / 2 * through, own[:, None] * weights
        together = bent + drawn
        alike = (target[:, None] == target) * (own[:, None] * own / 2)
        price = torch.addmm(together + bent, together @ scaled.T + alike, hidden, beta=kept, alpha=-1)
        price.addmm_(moving, torch.stack([-common, moved_sum - self.num_classes / 2 * common]))
        half = hidden.T @ price
        self.gram.mul_(kept**2).sub_(half).sub_(half.T)
        self.weight_sum.copy_(moved_sum - self.num_classes * common - moved)

        # U <- U M, and its inverse by Woodbury's formula, which also gives hidden U^-1 after the step at no cost.
        self.omega.copy_(kept * self.omega - (hidden @ self.omega) @ scaled - common)
        turned = hidden @ self.U.T
        self.U.addmm_(turned.T, scaled, beta=kept, alpha=-1)
        inner = torch.eye(len(hidden), dtype=hidden.dtype, device=hidden.device) - (hidden @ scaled.T) / kept
        solved = torch.linalg.solve_ex(inner, hidden @ self.U_inverse)[0] / kept
        self.U_inverse.addmm_(scaled.T, solved).div_(kept)
        self.steps += 1
        if int(self.steps) % _INVERTED_EVERY == 0:
            self._invert()
        condition = float(self.U.norm() * self.U_inverse.norm()) / self.in_features
        if condition <= self.largest_condition:
            self.V.index_add_(0, target, (own[:, None] * solved).to(self.V.dtype), alpha=-1)
        else:  # or NaN, where U has no inverse
            self._fold()
            self.V.index_add_(0, target, (own[:, None] * hidden).to(self.V.dtype), alpha=-1)
            self.recompute()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what the backward passes since the last step stored."""
        self._pending = []
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def recompute(self) -> None:
        """Compute Q and the sum of W's rows again from W, at a cost of :math:`O(C d^2)`."""
        self.gram.zero_()
        self.weight_sum.zero_()
        for rows in self._pieces():
            weights = self._rows(self.V[rows])
            self.gram += weights.T @ weights
            self.weight_sum += weights.sum(0)

    def extra_repr(self) -> str:
        """The sizes and the weight decay, as shown in the repr."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, weight_decay={self.weight_decay:g}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FactoredSphericalHead":
        """Move all buffers, but let only V change its dtype: the others are exact only in float64."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is None or moved.dtype == buffer.dtype or (name == "V" and moved.dtype in _DTYPES):
                continue
            self._buffers[name] = buffer.to(moved.device)
        return self

    def _fold(self) -> None:
        """Multiply U into V, and start with U = I again."""
        for rows in self._pieces():
            self.V[rows] = (self.V[rows].double() @ self.U).to(self.V.dtype)
        self.U.copy_(torch.eye(self.in_features, dtype=self.U.dtype, device=self.U.device))
        self.U_inverse.copy_(self.U)
        self.folds += 1

    def _invert(self) -> None:
        product = self.U @ self.U_inverse
        self.drift.copy_(
            (product - torch.eye(self.in_features, dtype=product.dtype, device=product.device)).abs().max()
        )
        self.U_inverse.copy_(torch.linalg.inv_ex(self.U)[0])

    def _keep(self, made_at: int, pending: _Pending) -> None:
        if made_at != int(self.steps):
            raise RuntimeError("backward() of a loss that was computed before the last step(): compute it anew")
        self._pending.append(pending)

    def _rows(self, factors: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
        """Rows of W from rows of V."""
        return torch.addmm(self.omega, factors.double(), self.U)

    def _turned(self, hidden: Tensor) -> tuple[Float[Tensor, "n features"], Float[Tensor, " n"]]:
        """The factor that V is multiplied by, and the number that is added for every class."""
        self._check_hidden(hidden)
        exact = hidden.double()
        return (exact @ self.U.T).to(self.V.dtype), (exact @ self.omega).to(self.V.dtype)

    def _pieces(self, width: int | None = None) -> list[slice]:
        """The classes in pieces, such that ``width`` numbers for each class of a piece fit in memory at once."""
        size = max(1, _AT_ONCE // (width or self.in_features))
        return [slice(start, min(start + size, self.num_classes)) for start in range(0, self.num_classes, size)]

    def _check_hidden(self, hidden: Tensor) -> None:
        check_floating("hidden", hidden)
        if hidden.ndim != 2 or hidden.shape[1] != self.in_features:
            raise ValueError(f"hidden must have shape (n, {self.in_features}), got {tuple(hidden.shape)}")

    def _checked(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The classes, with 0 where a row is left out, and which rows are kept."""
        self._check_hidden(hidden)
        check_tensor("target", target)
        if target.dtype != torch.int64:
            raise TypeError(f"target must be int64 classes, got {target.dtype}")
        if target.shape != hidden.shape[:1]:
            raise ValueError(f"target must have shape {tuple(hidden.shape[:1])}, got {tuple(target.shape)}")
        kept = target != self.ignore_index
        target = torch.where(kept, target, 0)
        if readable(target) and len(target):
            wrong = (target < 0) | (target >= self.num_classes)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise ValueError(f"target must be in [0, {self.num_classes}), got {int(target[row])} in row {row}")
        return target, kept


class _Statistics(torch.autograd.Function):
    """Each row's target score, sum of scores and sum of squared scores, and ``Q h``, half the gradient of the last."""

    @staticmethod
    def forward(
        hidden: Tensor, rows: Tensor, weight_sum: Tensor, gram: Tensor
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n features"]]:
        through = hidden @ gram
        return torch.stack([(rows * hidden).sum(1), hidden @ weight_sum, (through * hidden).sum(1)], dim=1), through

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, rows, weight_sum, gram, through = ctx.saved_tensors
        through = hidden @ gram if torch.is_grad_enabled() else through
        own, summed, squared = upstream[:, :, None].unbind(dim=1)
        return torch.addcmul(own * rows + summed * weight_sum, squared, through, value=2), None, None, None


def _known(loss: ZLoss | str | FromStatistics) -> ZLoss | FromStatistics:
    if isinstance(loss, str):
        check_choice("loss", loss, ("squared",))
        return _squared
    if not callable(loss):
        raise TypeError(f"loss must be a ZLoss, 'squared' or a function of the statistics, got {type(loss).__name__}")
    return loss


def _z_loss(loss: ZLoss, own: Tensor, summed: Tensor, squared: Tensor, classes: int) -> Tensor:
    return z_loss_from_statistics(own, summed, squared, classes, loss.a, loss.b, math.sqrt(loss.variance_floor))


def _squared(own: Tensor, summed: Tensor, squared: Tensor, classes: int) -> Tensor:
    return squared - 2 * own + 1
