"""Regression by classification: a real target becomes a distribution over bins, trained by cross-entropy."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_finite, check_floating, check_int, check_positive, readable, wide
from lossworks.roles import REAL, Loss, check_no_nan

MOST_BINS = 1_000_000


class _BinnedLoss(Loss):
    """Cross-entropy to a distribution over bins; subclasses say where the bins lie and how a value spreads."""

    kind = REAL
    rowwise = True
    needs = ("v_min", "v_max")

    def __init__(
        self, v_min: float | Tensor, v_max: float | Tensor, num_bins: int = 51, *, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.v_min, self.v_max = check_finite("v_min", v_min), check_finite("v_max", v_max)
        if all(not isinstance(v, Tensor) or readable(v) for v in (v_min, v_max)) and not v_min < v_max:
            raise ValueError(f"v_max must be above v_min = {float(v_min):g}, got {float(v_max):g}")
        self.num_bins = check_int("num_bins", num_bins, low=2, high=MOST_BINS)

    def target_probabilities(self, values: Float[Tensor, " n"]) -> Float[Tensor, "n bins"]:
        """The distributions that stand for the values, which are first clamped to [v_min, v_max]."""
        bins, weights = self._near(values)
        return weights.new_zeros((*values.shape, self.num_bins)).scatter(-1, bins, weights)

    def _near(self, values: Float[Tensor, " n"]) -> tuple[Int[Tensor, "n near"], Float[Tensor, "n near"]]:
        """The neighbouring bins that can hold some of a value's weight, and the weight that each holds."""
        raise NotImplementedError(f"{type(self).__name__} must define _near(values) -> bins (n, k), weights (n, k)")

    def centres(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " bins"]:
        """The value that each bin stands for."""
        raise NotImplementedError(f"{type(self).__name__} must define centres(dtype, device) -> (num_bins,)")

    def mean(self, logits: Float[Tensor, "*batch bins"]) -> Float[Tensor, " *batch"]:
        """The predicted value: the mean of the bins' values under the softmax of the logits."""
        if not logits.ndim or logits.shape[-1] != self.num_bins:
            raise ValueError(f"output must have {self.num_bins} columns, one logit a bin, got {tuple(logits.shape)}")
        logits = wide(logits)
        return (logits.softmax(dim=-1) * self.centres(logits.dtype, logits.device)).sum(dim=-1)

    def predict(self, output: Float[Tensor, "n bins"]) -> Float[Tensor, " n"]:
        """The predicted values ``(n,)``, see :meth:`mean`."""
        return self.mean(output)

    def output_size(self, num_classes: int = 1) -> int:
        """One output a bin."""
        return self.num_bins

    def rows(
        self, output: Float[Tensor, "n bins"], target: Float[Tensor, " n"], index: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], None]:
        """The loss of each row; no row is left out."""
        check_floating("output", output)
        check_floating("target", target)
        if output.ndim != 2 or output.shape[1] != self.num_bins:
            raise ValueError(f"output must have shape (n, {self.num_bins}), one logit a bin, got {tuple(output.shape)}")
        if target.shape != output.shape[:1]:
            raise ValueError(f"target must have shape {tuple(output.shape[:1])}, got {tuple(target.shape)}")
        output = wide(output)
        losses = self.per_sample(output, target.to(output.dtype))
        check_no_nan(output, losses)
        return losses, None

    def per_sample(self, output: Float[Tensor, "n bins"], target: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        bins, weights = self._near(target.detach())
        return -(weights * output.log_softmax(dim=1).gather(1, bins)).sum(dim=1)

    def _in_bins(self, values: Tensor, count: int) -> Tensor:
        """The values on a scale where v_min is 0 and v_max is ``count``."""
        span = self.v_max - self.v_min
        return ((values - self.v_min) / span).clamp(0, 1) * count

    def _on_grid(self, positions: Tensor, count: int) -> Tensor:
        return self.v_min + (self.v_max - self.v_min) * (positions / count)


class HLGaussLoss(_BinnedLoss):
    r"""HL-Gauss histogram loss: a real target becomes a normal distribution's mass in bins, trained by cross-entropy.

    .. math::
        \ell(z, y) = -\sum_i p_i \log \mathrm{softmax}(z)_i, \qquad
        p_i = \frac{\Phi((e_{i+1} - y) / \sigma) - \Phi((e_i - y) / \sigma)}
                   {\Phi((e_K - y) / \sigma) - \Phi((e_0 - y) / \sigma)}

    with K bins between the edges :math:`e_0 = v_{min}, \dots, e_K = v_{max}` and :math:`\sigma` a multiple of their
    width. The prediction is the mean of the bins' centres under the predicted distribution. If that equals the target's
    own distribution p, the prediction is y up to 1e-5 bin widths with the default ``sigma_ratio``, as long as y is
    :math:`4 \sigma` inside the range.

    Args:
        v_min: The lower end of the range, in the target's units; lower targets are clamped to it.
        v_max: The upper end of the range; higher targets are clamped to it. Leave room for some bins beyond the targets
            that matter.
        num_bins: K, at least 2.
        sigma_ratio: :math:`\sigma` in bin widths, > 0. Towards 0 all mass is in the target's own bin, towards infinity
            it is uniform.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: logits ``(n, num_bins)``; target: ``(n,)``, floating-point, no gradient flows into it.
        - returns ``()``, or ``(n,)`` with ``reduction="none"``; at least the entropy of p.

    Raises:
        ValueError: ``v_min >= v_max``, ``num_bins < 2``, ``sigma_ratio <= 0``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it when the target is noisy with heavy tails, or when squared error trains a large network badly; not where
    values outside the range must be predicted. With few bins it costs about twice as much as cross-entropy on as many
    classes, because of the target's distribution; with many bins it costs no more.

    Papers: farebrother2024hlgauss, imani2018histogram

    >>> loss = HLGaussLoss(-1.0, 1.0, num_bins=21)
    >>> loss.mean(loss.target_probabilities(torch.tensor([0.3])).log())
    tensor([0.3000])
    """

    papers = ("farebrother2024hlgauss", "imani2018histogram")
    helps = ("real targets by classification", "outliers", "heavy tails")
    settings = ({"num_bins": 51}, {"num_bins": 51, "sigma_ratio": 2.0})

    def __init__(
        self,
        v_min: float | Tensor,
        v_max: float | Tensor,
        num_bins: int = 51,
        sigma_ratio: float | Tensor = 0.75,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(v_min, v_max, num_bins, reduction=reduction)
        self.sigma_ratio = check_positive("sigma_ratio", sigma_ratio)

    def _near(self, values: Float[Tensor, " n"]) -> tuple[Int[Tensor, "n near"], Float[Tensor, "n near"]]:
        spread = math.sqrt(2) * self.sigma_ratio
        position = self._in_bins(values, self.num_bins).unsqueeze(-1)
        reach = self._reach(values.dtype)
        count = min(2 * math.ceil(reach) + 2, self.num_bins) if reach < self.num_bins else self.num_bins
        first = (position - reach).floor().long().clamp(0, self.num_bins - count)
        edges = first + torch.arange(count + 1, device=values.device)
        mass = ((edges - position) / spread).erf().diff(dim=-1).clamp_min(0)
        return edges[..., :-1], mass / mass.sum(dim=-1, keepdim=True)

    def _reach(self, dtype: torch.dtype) -> float:
        """Within how many bins of a value all its mass lies, up to rounding; infinite under a transform."""
        if isinstance(self.sigma_ratio, Tensor) and not readable(self.sigma_ratio):
            return math.inf
        # Beyond this many spreads the error function is 1 to half a unit of the last place.
        return math.sqrt(-2 * math.log(torch.finfo(dtype).eps)) * float(torch.as_tensor(self.sigma_ratio).detach())

    def centres(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " bins"]:
        """The middles of the bins."""
        return self._on_grid(torch.arange(self.num_bins, dtype=dtype, device=device) + 0.5, self.num_bins)


class TwoHotLoss(_BinnedLoss):
    r"""Two-hot loss: a real target becomes weights on the two grid points beside it, trained by cross-entropy.

    .. math::
        \ell(z, y) = -\sum_i p_i \log \mathrm{softmax}(z)_i, \qquad
        p_i = \max\Big(0,\; 1 - \frac{|y - v_i|}{v_2 - v_1}\Big)

    with K grid points :math:`v_1 = v_{min}, \dots, v_K = v_{max}`. The prediction is the mean of the grid points under
    the predicted distribution. If the predicted distribution equals the target's weights p, the prediction is exactly
    y.

    Args:
        v_min: The lower end of the range, in the target's units; lower targets are clamped to it.
        v_max: The upper end of the range; higher targets are clamped to it.
        num_bins: K, at least 2; with 2 it is binary cross-entropy on the rescaled value.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - output: logits ``(n, num_bins)``; target: ``(n,)``, floating-point, no gradient flows into it.
        - returns ``()``, or ``(n,)`` with ``reduction="none"``; at least the entropy of p.

    Raises:
        ValueError: ``v_min >= v_max``, ``num_bins < 2``, shapes that don't match.
        TypeError: a target that isn't floating-point.

    Use it in place of :class:`HLGaussLoss` where the targets must not be blurred. As a rule HL-Gauss generalises
    better, because neighbouring bins share what they learn.

    Papers: farebrother2024hlgauss

    >>> TwoHotLoss(0.0, 2.0, num_bins=3).target_probabilities(torch.tensor([0.25]))
    tensor([[0.7500, 0.2500, 0.0000]])
    """

    papers = ("farebrother2024hlgauss",)
    helps = ("real targets by classification", "outliers")
    settings = ({"num_bins": 51},)

    def _near(self, values: Float[Tensor, " n"]) -> tuple[Int[Tensor, "n near"], Float[Tensor, "n near"]]:
        position = self._in_bins(values, self.num_bins - 1)
        lower = position.floor().long().clamp(0, self.num_bins - 2)
        upper_share = position - lower
        return torch.stack([lower, lower + 1], dim=-1), torch.stack([1 - upper_share, upper_share], dim=-1)

    def centres(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " bins"]:
        """The grid points."""
        return self._on_grid(torch.arange(self.num_bins, dtype=dtype, device=device), self.num_bins - 1)
