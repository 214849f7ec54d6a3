"""Cross-entropy, the reference that every other class loss is compared with."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossworks.checks import check_between
from lossworks.losses._rows import soft_cross_entropy, surprise_and_total
from lossworks.roles import Loss, SoftmaxForm


class CrossEntropyLoss(Loss):
    r"""Cross-entropy: the negative log-probability of the label under the softmax, with optional label smoothing.

    .. math::
        \ell(z, y) = -\sum_k t_k \log p_k, \qquad p = \mathrm{softmax}(z), \qquad
        t_k = (1 - \varepsilon)\,[k = y] + \varepsilon / C

    It is ``torch.nn.functional.cross_entropy``; here the smoothing may also be a tensor.

    Args:
        label_smoothing: The share :math:`\varepsilon` of the label that is spread over all classes, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: logits ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64, or
          class probabilities in the output's shape.
        - returns ``()``, or the target's shape (without the class axis) with ``reduction="none"``; at least 0.

    Raises:
        ValueError: ``label_smoothing`` outside [0, 1], shapes that don't match, a class outside ``[0, C)``.

    Use it first, and as the reference. Not when labels are noisy, because it fits the noise, or when some classes are
    rare, because it favours the common ones. With label smoothing its softmax estimates the smoothed probabilities.

    Papers: szegedy2016labelsmoothing

    >>> import torch
    >>> loss = CrossEntropyLoss()
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6931)
    """

    papers = ("szegedy2016labelsmoothing",)
    helps = ("baseline",)
    rowwise = True
    soft_targets = True
    probabilistic = True

    def __init__(
        self, label_smoothing: float | Tensor = 0.0, *, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.label_smoothing = check_between("label_smoothing", label_smoothing, 0, 1)

    def per_sample(
        self, output: Float[Tensor, "n classes"], target: Shaped[Tensor, "n *classes"]
    ) -> Float[Tensor, " n"]:
        """The loss of each row."""
        if target.is_floating_point():
            smoothing = self.label_smoothing
            if isinstance(smoothing, Tensor) or smoothing:
                target = target + smoothing * (1 / output.shape[1] - target)
            return soft_cross_entropy(output, target)
        if not isinstance(self.label_smoothing, Tensor):
            return cross_entropy(output, target, reduction="none", label_smoothing=self.label_smoothing)
        own, total = surprise_and_total(output, target)
        return self._smoothed(own, total / output.shape[1])

    def _smoothed(self, own: Float[Tensor, " n"], mean: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The label's cross-entropy drawn towards the mean over all classes; a share of 0 adds nothing, also of inf."""
        smoothing = torch.as_tensor(self.label_smoothing, device=own.device)
        gap = mean - own
        return own + self.label_smoothing * torch.where((smoothing == 0) & ~gap.isfinite(), 0, gap)

    def closed_form(self, num_classes: int) -> SoftmaxForm:
        """See :class:`lossworks.roles.SoftmaxForm`."""
        smoothing = self.label_smoothing
        if not isinstance(smoothing, Tensor) and smoothing == 0:
            return SoftmaxForm(lambda own: own, gradient=self._gradient)

        def value(own: Tensor, total: Tensor) -> Tensor:
            return self._smoothed(own, total / num_classes)

        return SoftmaxForm(value, reads_total=True, gradient=self._gradient)

    def _gradient(self, logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, "n classes"]:
        """The softmax less the smoothed label."""
        gradient = logits.softmax(dim=1) - self.label_smoothing / logits.shape[1]
        label = torch.as_tensor(self.label_smoothing - 1, dtype=logits.dtype, device=logits.device)
        return gradient.scatter_add_(1, target[:, None], label.expand(len(target), 1))
