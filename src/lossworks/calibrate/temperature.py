"""Temperature scaling: one number, fitted after training, that calibrates a classifier's probabilities."""

import math
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_floating, check_positive
from lossworks.roles.calibrator import Calibrator, class_logits


class TemperatureScaling(Calibrator):
    r"""Temperature scaling: divide the logits by one number fitted on held-out rows; the predicted class never changes.

    .. math::
        T = \arg\min_{T > 0} \; -\sum_i \sum_k t_{ik} \log \mathrm{softmax}(z_i / T)_k, \qquad
        t_{ik} = \frac{n\,[k = y_i] + s / C}{n + s}

    The objective is convex in :math:`1/T`, so its one minimum is found exactly (Newton's method inside a bracket). With
    :math:`s = 0` it is the paper's objective. But where every held-out prediction is right, that objective is lowest at
    :math:`T = 0`, which claims certainty from a handful of rows. The default :math:`s = 1` smooths the labels as much
    as one row without a label would: this keeps :math:`T` above 0, makes no difference among thousands of rows, and
    keeps :math:`T(c z) = c\,T(z)`.

    Args:
        smoothing: The amount :math:`s` of label smoothing, in rows, >= 0.

    Attributes:
        temperature: ``()``, a buffer; 1 until fitted. It lies between 1/1000 and 1000 times the logits' spread (the
            root mean square of their distance to the row's mean). It ends at one of these bounds where logits are
            always right and there is no smoothing, or where logits say nothing about the label. Logits without spread
            leave it at 1.

    Shape:
        - logits: ``(n, C)``, or ``(n,)``, the logit of class 1; target: ``(n,)``, int64 (for ``(n,)`` also 0.0 and
            1.0). A class may be masked by -inf in rows whose label it is not.
        - returns the logits' shape.

    Raises:
        ValueError: ``smoothing < 0``, no rows, NaN or Inf in the logits, a masked label, a class out of range.

    Use it before reading probabilities off any trained network. It cannot mend confusions that go only one way between
    classes.

    Papers: guo2017calibration

    >>> calibrator = TemperatureScaling().fit(torch.tensor([9.0, 9.0, 9.0, -9.0]), torch.tensor([1, 1, 0, 0]))
    >>> calibrator(torch.tensor([9.0])) < 2
    tensor([True])
    """

    papers = ("guo2017calibration",)
    helps = ("calibration",)

    temperature: Tensor

    def __init__(self, *, smoothing: float = 1.0) -> None:
        super().__init__()
        self.smoothing = check_positive("smoothing", smoothing, allow_zero=True)
        self.temperature = torch.tensor(1.0)

    @torch.no_grad()
    def fit(self, logits: Float[Tensor, "n *classes"], target: Int[Tensor, " n"]) -> Self:
        """Fit the temperature on rows that the model was not trained on; return the calibrator itself."""
        z, y = class_logits(logits, target)
        there = z.isfinite()
        held = z.masked_fill(~there, 0)
        z = z - held.sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
        spread = float((z.masked_fill(~there, 0).square().sum() / there.sum()).sqrt())
        inverse = _best_inverse(z / spread, y, self.smoothing) / spread if spread > 0 else 1.0
        self.temperature.fill_(1 / inverse)
        return self

    def forward(self, logits: Float[Tensor, "n *classes"]) -> Float[Tensor, "n *classes"]:
        """The logits divided by the temperature."""
        check_floating("logits", logits)
        return logits / self.temperature.to(logits.dtype)


def _best_inverse(z: Float[Tensor, "n classes"], y: Int[Tensor, " n"], smoothing: float) -> float:
    """The inverse temperature in [1e-3, 1e3] with the lowest loss, for centred logits."""
    rows = len(z)
    # The uniform part of the smoothed target adds nothing to this mean, as the logits are centred.
    gained = float(z.gather(1, y[:, None]).mean()) * rows / (rows + smoothing)
    held = z.masked_fill(z.isneginf(), 0)

    def derivatives(inverse: float) -> tuple[float, float]:
        p = (z * inverse).softmax(dim=1)
        mean = (p * held).sum(dim=1, keepdim=True)
        return float(mean.mean()) - gained, float((p * (held - mean).square()).sum(dim=1).mean())

    low, high = math.log(1e-3), math.log(1e3)
    if derivatives(math.exp(low))[0] >= 0:
        return math.exp(low)
    if derivatives(math.exp(high))[0] <= 0:
        return math.exp(high)
    at = 0.0
    for _ in range(100):
        slope, curvature = derivatives(math.exp(at))
        low, high = (at, high) if slope < 0 else (low, at)
        step = slope / (curvature * math.exp(at)) if curvature > 0 else math.inf
        following = at - step if low < at - step < high else (low + high) / 2
        if abs(following - at) < 1e-12:
            break
        at = following
    return math.exp(at)
