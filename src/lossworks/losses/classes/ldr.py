"""Label-distributionally robust losses: the worst case over how the label's weight is spread across classes."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from lossworks.checks import (
    check_between,
    check_choice,
    check_classes,
    check_floating,
    check_int,
    check_positive,
    check_rows,
)
from lossworks.losses._rows import from_the_top, in_blocks, softmax_and_surprise
from lossworks.roles import ClosedForm, Loss, RowForm, SoftmaxForm, cite

NORMALIZE = ("softplus_mean", "l1_mean")
_LARGEST_SCORE = 1e15  # its square and the inverse of that are finite in float32
_SMALLEST_MEAN = 1e-12
_SMOOTHING = 1e-5
_GRID_POINTS = 40
_NEWTON_STEPS = 12


@cite("zhu2023ldr")
def normalize_scores(output: Float[Tensor, "n classes"], normalize: str | None) -> Float[Tensor, "n classes"]:
    r"""Scale each row's scores to a size of about 1, so that ``lam`` means the same for every model.

    Args:
        output: The scores, ``(n, C)``.
        normalize: ``"l1_mean"`` divides by the row's mean :math:`|z_k|`; ``"softplus_mean"`` takes
            :math:`\log(1 + e^z)` first; ``None`` leaves the scores as they are.

    Raises:
        ValueError: an unknown ``normalize``.

    Papers: zhu2023ldr

    >>> normalize_scores(torch.tensor([[3.0, -1.0]]), "l1_mean")
    tensor([[ 1.5000, -0.5000]])
    """
    check_floating("output", output)
    if output.ndim != 2:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    scores, size = _scores_and_size(output, normalize)
    return scores if normalize is None else scores * (1 / size)


def _scores_and_size(
    output: Float[Tensor, "n classes"], normalize: str | None
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n 1"]]:
    """The scores before they are brought to size 1, and each row's size."""
    if normalize is None:
        return output, torch.ones_like(output[:, :1])
    softened = check_choice("normalize", normalize, NORMALIZE) == "softplus_mean"
    # A class masked by -inf keeps the limit of a score that is ever lower: it outweighs the others in the mean.
    scores = softplus(output) if softened else output.clamp_min(-_LARGEST_SCORE)
    magnitude = scores if softened else scores.abs()
    return scores, magnitude.mean(dim=1, keepdim=True) + _SMALLEST_MEAN


@cite("zhu2023ldr", helps=("noisy labels",))
def ldr_label_weights(
    output: Float[Tensor, "n classes"],
    target: Int[Tensor, " n"],
    lam: float | Tensor = 1.0,
    margin: float | Tensor = 0.1,
) -> Float[Tensor, "n classes"]:
    r"""The worst case of :class:`LDRLoss`: the distribution q over the classes at which its maximum is taken.

    .. math:: q_k = \mathrm{softmax}(d / \lambda)_k, \qquad d_k = z_k - z_y + m\,[k \ne y]

    The loss's gradient in the scores is q minus the one-hot label.

    Raises:
        ValueError: ``lam <= 0``, ``margin < 0``, shapes that don't match, a class outside ``[0, C)``.

    Papers: zhu2023ldr

    >>> ldr_label_weights(torch.zeros(1, 2), torch.tensor([0]), lam=1.0, margin=0.0)
    tensor([[0.5000, 0.5000]])
    """
    check_classes(output, target)
    check_positive("lam", lam)
    check_positive("margin", margin, allow_zero=True)
    return _scaled(output, 1.0, target, lam, margin).softmax(dim=1)


class LDRLoss(Loss):
    r"""Label-distributionally robust loss: the worst case over how the label's weight is spread across classes.

    .. math::
        \ell(z, y) = \max_{q \in \Delta_C} \sum_k q_k d_k - \lambda\, \mathrm{KL}(q \,\|\, 1/C)
                   = \lambda \log \tfrac1C \sum_k e^{d_k / \lambda},
        \qquad d_k = z_k - z_y + m\,[k \ne y]

    ``lam`` leads through well-known losses: ``lam=1, margin=0`` is cross-entropy less :math:`\log C`; as ``lam -> 0``
    it becomes Crammer-Singer's multi-class hinge; as ``lam -> inf`` the mean margin, which is symmetric and so robust
    to label noise.

    Args:
        lam: How strongly q is held near uniform, in logit units, > 0. A small ``lam`` trusts the label, a large one
            doubts it.
        margin: By how much the target's score should exceed the others, in logit units, >= 0.
        normalize: How :func:`normalize_scores` scales the scores first. The authors use ``"softplus_mean"`` with
            ``lam=10``; with it, and the backward pass through it, the loss costs about four times as much as
            cross-entropy.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; at least :math:`-\lambda \log C`.

    Raises:
        ValueError: ``lam <= 0``, ``margin < 0``, unknown ``normalize``, shapes that don't match, a class outside
            ``[0, C)``.

    Use it when labels are noisy and there are many classes; with clean labels and a tuned schedule cross-entropy is as
    good.

    Papers: zhu2023ldr

    >>> loss = LDRLoss(lam=2.0)
    >>> loss(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])) < 0
    tensor(True)
    """

    papers = ("zhu2023ldr",)
    helps = ("noisy labels", "many classes")
    rowwise = True
    settings = ({"lam": 1.0}, {"lam": 3.0}, {"lam": 10.0})
    modes = ({"normalize": "l1_mean"}, {"normalize": "softplus_mean"})

    def __init__(
        self,
        lam: float | Tensor = 1.0,
        margin: float | Tensor = 0.1,
        normalize: str | None = None,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.lam = check_positive("lam", lam)
        self.margin = check_positive("margin", margin, allow_zero=True)
        self.normalize = None if normalize is None else check_choice("normalize", normalize, NORMALIZE)

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        check_classes(output, target)
        return _ldr(*_scores_and_size(output, self.normalize), target, self.lam, self.margin)

    def closed_form(self, num_classes: int) -> ClosedForm:
        """See :class:`lossworks.roles.ClosedForm`: by its softmax, unless the scores are normalised first."""
        if self.normalize is not None:
            return RowForm(lambda output, y: _ldr_and_slope(output, self.normalize, y, self.lam, self.margin))
        lam = self.lam
        return SoftmaxForm(lambda own: lam * (own - math.log(num_classes)), scale=1 / lam, handicap=-self.margin / lam)

    def predict(self, output: Tensor) -> Tensor:
        """Class probabilities at the temperature ``lam``; exact at the loss's optimum if ``margin`` is 0."""
        return (normalize_scores(output, self.normalize) / self.lam).softmax(dim=-1)


class AdaptiveLDRLoss(Loss):
    r"""LDR loss with its own adaptive ``lam`` for each training row: small where the model is confident, else large.

    .. math::
        \ell_i(z, y) = \max_{\lambda_i} \; \lambda_i \log \tfrac1C \sum_k e^{d_k / \lambda_i}
                     - \frac{\alpha \log C}{2 \lambda_0} (\lambda_i - \lambda_0)^2
        \qquad \lambda_i = \lambda_0 \Big(1 - \frac{\mathrm{KL}(q_i \,\|\, 1/C)}{\alpha \log C}\Big)

    Here d is as in :class:`LDRLoss`, on normalised scores, and :math:`\lambda_i` lies in
    :math:`[\lambda_0 (1 - 1/\alpha), \lambda_0]`.

    In ``train()`` mode each row's ``lam`` is updated and remembered, and is a constant for the gradient; in ``eval()``
    mode the remembered value is used and nothing changes. Ignored rows are not remembered. A row that is in a batch
    twice keeps the smaller of its two values of ``lam``, also where the two are on different ranks of a
    ``process_group``; when the batch is split into micro-batches, :meth:`lossworks.Objective.micro_batches` ensures the
    same. A training step takes another pass over the scores for the update, and costs about five times as much as
    cross-entropy.

    Args:
        num_samples: N, the number of training rows.
        lam0: The ``lam`` with which every row starts, and the largest that it can have, in units of the normalised
            scores, > 0.
        alpha: How strongly ``lam`` is held near ``lam0``, > 1.
        margin: By how much the target's score should exceed the others, in units of the normalised scores, >= 0.
        normalize: How :func:`normalize_scores` scales the scores first.
        mode: How ``lam`` is updated. ``"one_step"`` applies the formula above once, at the remembered ``lam`` and with
            q without the margin, as the authors do; ``"exact"`` finds the maximum over the interval, which costs about
            fifteen times as much.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Buffers:
        lam: ``(N,)`` float32, the ``lam`` of each training row.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``, C >= 2; target: classes ``(n,)`` or ``(n, d1, ...)``, int64;
          index: in the target's shape, int64 in ``[0, N)``, or -1 for a row that is not remembered.
        - returns ``()``, or the target's shape with ``reduction="none"``.

    Raises:
        ValueError: a hyperparameter out of its range, ``index`` missing, of another shape or out of range, shapes that
            don't match, a class outside ``[0, C)``.

    Use it when labels are noisy and no single ``lam`` suits all rows; a well-tuned :class:`LDRLoss` is often as good
    and keeps no state.

    Papers: zhu2023ldr

    >>> loss = AdaptiveLDRLoss(num_samples=100)
    >>> loss(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]), index=torch.tensor([7])) < 0
    tensor(True)
    """

    papers = ("zhu2023ldr",)
    helps = ("noisy labels", "many classes")
    reads_offset = True
    rowwise = True
    needs = ("num_samples",)
    needs_index = True
    memories: ClassVar[Mapping[str, str]] = {"lam": "amin"}
    settings = ({"lam0": 10.0}, {"lam0": 1.0})
    modes = ({"lam0": 1.0, "mode": "exact"}, {"normalize": "softplus_mean"}, {"normalize": None})
    lam: Tensor

    def __init__(
        self,
        num_samples: int,
        lam0: float | Tensor = 10.0,
        alpha: float | Tensor = 2.0,
        margin: float | Tensor = 0.1,
        normalize: str | None = "l1_mean",
        mode: str = "one_step",
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.num_samples = check_int("num_samples", num_samples, low=1, high=2**31 - 1)
        self.lam0 = check_positive("lam0", lam0)
        self.alpha = check_between("alpha", alpha, 1, math.inf, open_low=True, open_high=True)
        self.margin = check_positive("margin", margin, allow_zero=True)
        self.normalize = None if normalize is None else check_choice("normalize", normalize, NORMALIZE)
        self.mode = check_choice("mode", mode, ("one_step", "exact"))
        self.lam = torch.ones(num_samples) * torch.as_tensor(lam0).detach()

    def per_sample(  # type: ignore[override]  # a loss with a memory takes the rows' numbers too
        self,
        output: Float[Tensor, "n classes"],
        target: Int[Tensor, " n"],
        index: Int[Tensor, " n"],
        memory: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """The loss of each row; a row whose index is -1 is not remembered.

        A ``memory``, as :meth:`recall` returns it, is taken as the rows' ``lam``, and nothing is updated.
        """
        check_classes(output, target)
        if output.shape[1] < 2:
            raise ValueError(f"output must have at least 2 classes, got {tuple(output.shape)}")
        scores, size = _scores_and_size(output, self.normalize)
        if memory is None:
            memory = self._recall(scores, size, target, index)
            if self.training:
                self.keep(index, memory)
        return self._value(scores, size, target, memory)

    def closed_form(self, num_classes: int) -> RowForm:
        """See :class:`lossworks.roles.RowForm`, at the rows' remembered ``lam``."""
        return RowForm(self._value_and_gradient, remembers=True)

    def _value_and_gradient(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], memory: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
        value, slope = _ldr_and_slope(output, self.normalize, target, memory, self.margin)
        return value - self._held(memory, output.shape[1]), slope

    def recall(
        self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The rows' ``lam``, updated in ``train()`` mode; what is remembered does not change."""
        return self._recall(*_scores_and_size(output, self.normalize), target, index)

    def predict(self, output: Tensor) -> Tensor:
        """Class probabilities of the normalised scores, at the temperature ``lam0``."""
        return (normalize_scores(output, self.normalize) / self.lam0).softmax(dim=-1)

    @torch.no_grad()
    def _recall(self, scores: Tensor, size: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_rows("index", index, self.num_samples, low=-1)
        remembered = self.lam[index.clamp(min=0)].to(scores.dtype)
        if not self.training:
            return remembered
        if self.mode == "one_step":
            return self._one_step(scores, size, remembered)
        return self._exact(scores, size, target)

    def _value(self, scores: Tensor, size: Tensor, target: Tensor, lam: Tensor) -> Tensor:
        return _ldr(scores, size, target, lam, self.margin) - self._held(lam, scores.shape[1])

    def _held(self, lam: Tensor, num_classes: int) -> Tensor:
        """The price on the distance of ``lam`` from ``lam0``."""
        return self.alpha * math.log(num_classes) / (2 * self.lam0) * (lam - self.lam0).square()

    def _one_step(self, scores: Tensor, size: Tensor, lam: Tensor) -> Tensor:
        """The stationary lam for the q that the remembered lam gives."""
        num_classes = scores.shape[1]
        (divergence,) = in_blocks(_divergence, scores * (1 / (size * lam[:, None])))
        return self.lam0 * (1 - divergence / (self.alpha * math.log(num_classes)))

    def _exact(self, scores: Tensor, size: Tensor, target: Tensor) -> Tensor:
        """The best lam of each row: on a grid, as the value need not be concave, then by Newton's method."""
        low = (self.lam0 * (1 - 1 / self.alpha)) * torch.ones_like(scores[:, 0])
        step = self.lam0 / self.alpha / (_GRID_POINTS - 1)
        best, best_value = low, self._value(scores, size, target, low)
        for point in range(1, _GRID_POINTS):
            lam = low + point * step
            value = self._value(scores, size, target, lam)
            best, best_value = torch.where(value > best_value, lam, best), torch.maximum(value, best_value)
        # The slope tells the side of the best point. Its root is exact to the last digits, where the value is flat.
        rising = self._slopes(scores, size, target, best)[0] >= 0
        left = torch.where(rising, best, torch.maximum(best - step, low))
        right = torch.where(rising, torch.minimum(best + step, low + self.lam0 / self.alpha), best)
        lam = (left + right) / 2
        for _ in range(_NEWTON_STEPS):
            slope, curvature = self._slopes(scores, size, target, lam)
            left, right = torch.where(slope >= 0, lam, left), torch.where(slope >= 0, right, lam)
            newton = lam - slope / curvature
            inside = (curvature < 0) & (newton >= left) & (newton <= right)
            lam = torch.where(inside, newton, (left + right) / 2)
        slack = 64 * torch.finfo(scores.dtype).eps * (1 + best_value.abs())  # no row's answer hangs on rounding
        return torch.where(self._value(scores, size, target, lam) >= best_value - slack, lam, best)

    def _slopes(self, scores: Tensor, size: Tensor, target: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """The first and second derivative of the value in lam, which only the softmax's entropy and spread decide."""
        price = self.alpha * math.log(scores.shape[1]) / self.lam0
        log_p = _scaled(scores, size, target, lam, self.margin).log_softmax(dim=1)
        p = log_p.exp()
        log_p = torch.where(p > 0, log_p, 0)
        mean = (p * log_p).sum(dim=1)
        spread = (p * (log_p - mean[:, None]).square()).sum(dim=1)
        return -(math.log(scores.shape[1]) + mean) - price * (lam - self.lam0), spread / lam - price


def _divergence(logits: Float[Tensor, "n classes"]) -> tuple[Float[Tensor, " n"]]:
    """How far the smoothed softmax of each row is from uniform; without a gradient."""
    num_classes = logits.shape[1]
    spread, total = logits.softmax(dim=1).add_(_SMOOTHING), 1 + num_classes * _SMOOTHING
    return (math.log(num_classes / total) + spread.log().mul_(spread).sum(dim=1) / total,)


def _scaled(
    scores: Float[Tensor, "n classes"],
    size: float | Float[Tensor, "n 1"],
    target: Int[Tensor, " n"],
    lam: float | Float[Tensor, ""] | Float[Tensor, " n"],
    margin: float | Tensor,
) -> Float[Tensor, "n classes"]:
    """The sized scores over lam, less the margin at the target; their differences to the target's are d / lam."""
    rows = torch.as_tensor(lam, dtype=scores.dtype, device=scores.device).reshape(-1, 1)
    rows = (
        rows + 0 * margin
    )  # under vmap the quotient is then stacked wherever the margin is, and may be changed in place
    handicap = (-margin / rows).expand(scores.shape[0], 1)
    return (from_the_top(scores) * (1 / (size * rows))).scatter_add_(1, target[:, None], handicap)


def _ldr(
    scores: Float[Tensor, "n classes"],
    size: float | Float[Tensor, "n 1"],
    target: Int[Tensor, " n"],
    lam: float | Float[Tensor, ""] | Float[Tensor, " n"],
    margin: float | Tensor,
) -> Float[Tensor, " n"]:
    """LDR as lam times a cross-entropy at temperature lam, as sum_k exp(d_k / lam) is 1 over the target's softmax."""
    log_ratio = cross_entropy(_scaled(scores, size, target, lam, margin), target, reduction="none")
    return lam * (log_ratio - math.log(scores.shape[1]))


def _ldr_and_slope(
    output: Float[Tensor, "n classes"],
    normalize: str | None,
    target: Int[Tensor, " n"],
    lam: float | Float[Tensor, ""] | Float[Tensor, " n"],
    margin: float | Tensor,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n classes"]]:
    """LDR and its gradient in the outputs, which change a row's size as well as its scores; without autograd."""
    scores, size = _scores_and_size(output, normalize)
    label, num_classes = target[:, None], output.shape[1]
    slope, surprise = softmax_and_surprise(_scaled(scores, size, target, lam, margin), target)
    value = lam * (surprise - math.log(num_classes))
    pull = (torch.linalg.vecdot(slope, scores)[:, None] - scores.gather(1, label)) / (num_classes * size * size)
    slope = slope.mul_(1 / size).scatter_add_(1, label, -1 / size)
    if normalize == "l1_mean":
        slope.addcmul_(scores.sign(), -pull)
    elif normalize is not None:
        slope.sub_(pull).mul_(output.sigmoid())
    return value, slope
